"""Reading a picture back: what stands in it and how it looks, by rendering and comparing, without any learned model."""

from emuedit.toyworld.reading.agreement import ATTRIBUTES, Agreement, ObjectAgreement, compare, drift, faithfulness
from emuedit.toyworld.reading.picture import read
from emuedit.toyworld.reading.records import Reading, Seen

__all__ = ["ATTRIBUTES", "Agreement", "ObjectAgreement", "Reading", "Seen", "compare", "drift", "faithfulness", "read"]
