"""Recover the scene of an image by analysis by synthesis: compare it with renders, without a learned model."""

from toyworld.reading.agreement import ATTRIBUTES, Agreement, ObjectAgreement, accuracy, compare, drift, faithfulness
from toyworld.reading.picture_reader import read_scenes
from toyworld.reading.reading_records import Reading, SeenObject

__all__ = [
    "ATTRIBUTES",
    "Agreement",
    "ObjectAgreement",
    "Reading",
    "SeenObject",
    "accuracy",
    "compare",
    "drift",
    "faithfulness",
    "read_scenes",
]
