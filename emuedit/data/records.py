"""Caption, Instruction, Pair, Verdict, EvalRecord and Drop: frozen, and named by what they hold.

An id is the blake2b hash (16 hex digits) of the fields that make a record what it is. Pictures count by their pixels,
not by their compression. Where it came from and how it scored does not change the id.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from emuedit.data.png import decode_png

Json = dict[str, Any]
Scores = dict[str, float | None]


# How a field is stored, and whether it counts for the id. Without a mark: as it is, and it counts.
NOT_IN_ID: Mapping[str, Any] = {"named": False}
PNG: Mapping[str, Any] = {"form": "png"}
JSON: Mapping[str, Any] = {"form": "json"}
SCORES: Mapping[str, Any] = {"form": "scores", "named": False}


@dataclass(frozen=True)
class Record:
    """What all nouns share: an id made from content, and scores that are numbers or None."""

    @cached_property
    def id(self) -> str:
        """16 hex digits that depend on the kind of record and on its named fields only."""
        digest = hashlib.blake2b(type(self).__name__.encode(), digest_size=8)
        for one in fields(self):
            if one.metadata.get("named", True):
                value = _canonical(getattr(self, one.name), one.metadata.get("form", "plain"))
                digest.update(f"|{one.name}:{len(value)}:".encode() + value)
        return digest.hexdigest()

    def __post_init__(self) -> None:
        for name, value in getattr(self, "scores", {}).items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"want a finite score or None (undefined), got {name}={value} in {type(self).__name__}")


@dataclass(frozen=True)
class Caption(Record):
    """One sentence that says what a picture shows."""

    text: str
    source: str = field(metadata=NOT_IN_ID)
    """File it came from."""
    index: int = field(metadata=NOT_IN_ID)
    """Its row in the source, from 0."""


@dataclass(frozen=True)
class Instruction(Record):
    """One edit in words: what to say, and what the picture shows before and after."""

    caption_id: str
    task: str
    text: str
    source_caption: str
    target_caption: str
    source_object: str | None
    """What the edit touches, in words a detector understands; None when it is the whole picture."""
    target_object: str | None
    """What stands there afterwards; None when nothing does."""
    reverse: bool
    """Built backwards: the picture of `target_caption` is painted first, and the source is made from it (add, map to picture)."""
    seed: int = field(metadata=NOT_IN_ID)
    llm: str = field(metadata=NOT_IN_ID)
    """Model and revision that wrote it."""
    answer: str = field(metadata=NOT_IN_ID)
    """The LLM's whole answer, as it came."""


@dataclass(frozen=True)
class Pair(Record):
    """One painted before/after picture with all that is needed to paint it again or to judge it anew."""

    instruction_id: str
    parent_ids: tuple[str, ...]
    """Ids of the records it descends from, nearest first: a caption, an earlier pair."""
    task: str
    instruction: str
    source_caption: str
    target_caption: str
    seed: int
    model_revision: str
    recipe: Json = field(metadata=JSON)
    """How the mask was made and used: widths in px, fractions of the steps, guidance."""
    source: bytes = field(metadata=PNG)
    """The picture before: PNG of uint8 [H,W,3]."""
    target: bytes = field(metadata=PNG)
    """The picture after: PNG of uint8 [H,W,3]."""
    mask: bytes | None = field(metadata=PNG)
    """Soft mask: PNG of uint8 [H,W], 255 where the instruction rules; None for a task without a mask."""
    scores: Scores = field(metadata=SCORES)
    """Every raw score by name; None where it is undefined."""


@dataclass(frozen=True)
class Verdict(Record):
    """Whether a pair is kept, and why not. Rejected pairs keep their verdicts too."""

    pair_id: str
    kept: bool
    task: str
    """The task after the router had its say."""
    reasons: tuple[str, ...]
    """Names of the gates it failed; empty when kept."""
    gates: Json = field(metadata=JSON)
    """The thresholds that were in force."""
    scores: Scores = field(metadata=SCORES)
    """Every raw score the gates looked at; None where it is undefined."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept == bool(self.reasons):
            raise ValueError(f"want reasons exactly when a pair is not kept, got kept={self.kept} with reasons {self.reasons}")


@dataclass(frozen=True)
class EvalRecord(Record):
    """What a system made of one edit of a benchmark, and how that was judged."""

    system: str
    task: str
    instruction: str
    source_caption: str
    target_caption: str
    given_task: str
    """The task the system was told, or that the router chose."""
    seed: int
    source: bytes = field(metadata=PNG)
    """The picture to edit: PNG of uint8 [H,W,3]."""
    output: bytes = field(metadata=PNG)
    """What the system made of it: PNG of uint8 [H,W,3]."""
    exact: bytes | None = field(metadata={**PNG, **NOT_IN_ID})
    """The right result, where it is known."""
    success: bool = field(metadata=NOT_IN_ID)
    """Whether the benchmark's judge accepts it."""
    reason: str = field(metadata=NOT_IN_ID)
    """Why not; empty on success."""
    scores: Scores = field(metadata=SCORES)
    """The metrics of this one answer; None where undefined."""


@dataclass(frozen=True)
class Drop(Record):
    """Something a station read and did not pass on, with the reason."""

    subject: str
    """The text, or the id of the record."""
    reason: str
    source: str = field(metadata=NOT_IN_ID)
    index: int = field(metadata=NOT_IN_ID)


def _canonical(value: Any, form: str) -> bytes:
    if form == "png" and value is not None:
        pixels = decode_png(value)
        return f"{list(pixels.shape)}".encode() + pixels.tobytes()
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
