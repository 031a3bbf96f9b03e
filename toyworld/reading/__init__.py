"""Reading a picture back: what stands in it and how it looks, by rendering and comparing, without any learned model."""

from toyworld.reading.agreement import ATTRIBUTES, Agreement, ObjectAgreement, compare, drift, faithfulness
from toyworld.reading.picture_reader import read
from toyworld.reading.reading_records import Reading, Seen

__all__ = ["ATTRIBUTES", "Agreement", "ObjectAgreement", "Reading", "Seen", "compare", "drift", "faithfulness", "read"]
