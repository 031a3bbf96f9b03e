"""Records that stages exchange: Caption, Instruction, Pair, Verdict, EvalRecord and Drop. All are frozen dataclasses.

The id of a record is the blake2b hash (16 hex digits) of its content. Images are hashed by their pixels, not by their
PNG bytes. Provenance and scores (fields marked NOT_IN_ID or SCORES) do not change the id.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from typing import Any

from emuedit.data.png import decode_png

Json = dict[str, Any]
Scores = dict[str, float | None]


# Field metadata: how `shards` stores the field ("form"), its name in shards and in the id if that differs ("stored"), and whether
# it is part of the id ("named", default True). A field that was added later is part of it only if set, so that the ids of older
# records stay the same.
NOT_IN_ID: Mapping[str, Any] = {"named": False}
IN_ID_IF_SET: Mapping[str, Any] = {"named": "if set"}
PNG: Mapping[str, Any] = {"form": "png"}
JSON: Mapping[str, Any] = {"form": "json"}
SCORES: Mapping[str, Any] = {"form": "scores", "named": False}


@dataclass(frozen=True)
class Record:
    """Base of all records: an id computed from the content, and scores that are finite or None.

    Raises ValueError for a score that is not finite.
    """

    @cached_property
    def id(self) -> str:
        """Hash (16 hex digits) of the record's class and of the fields that are part of the id."""
        digest = hashlib.blake2b(type(self).__name__.encode(), digest_size=8)
        for record_field in fields(self):
            named = record_field.metadata.get("named", True)
            if named is True or (named == "if set" and getattr(self, record_field.name) is not None):
                value = _canonical_bytes(getattr(self, record_field.name), record_field.metadata.get("form", "plain"))
                digest.update(f"|{stored_name(record_field)}:{len(value)}:".encode() + value)
        return digest.hexdigest()

    def __post_init__(self) -> None:
        for name, value in getattr(self, "scores", {}).items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"want a finite score or None (undefined), got {name}={value} in {type(self).__name__}")


@dataclass(frozen=True)
class Caption(Record):
    """One sentence that describes an image."""

    text: str
    source: str = field(metadata=NOT_IN_ID)
    """File that the caption was read from."""
    index: int = field(metadata=NOT_IN_ID)
    """Row of the caption in the source, from 0."""
    image: str | None = field(default=None, metadata=NOT_IN_ID)
    """File of the image that it describes, relative to the project's folder if below it; None: without an image."""
    image_hash: str | None = field(default=None, metadata=IN_ID_IF_SET)
    """blake2b (16 hex digits) of that file."""


@dataclass(frozen=True)
class Instruction(Record):
    """An edit as text: the instruction, and captions of the image before and after the edit."""

    caption_id: str
    task: str
    text: str
    source_caption: str
    target_caption: str
    source_object: str | None
    """The object to edit, as a detector prompt; None for the whole image."""
    target_object: str | None
    """The object that replaces it; None if there is none."""
    reverse: bool
    """True: the target is generated first, and the source from it (add, map to image)."""
    seed: int = field(metadata=NOT_IN_ID)
    llm: str = field(metadata=NOT_IN_ID)
    """Model and revision of the LLM that wrote it."""
    answer: str = field(metadata=NOT_IN_ID)
    """The complete answer of the LLM."""
    image: str | None = field(default=None, metadata=NOT_IN_ID)
    """File of the image to use in place of a generated one, see Caption; None: it is generated from the caption."""
    image_hash: str | None = field(default=None, metadata=IN_ID_IF_SET)
    """blake2b (16 hex digits) of that file."""


@dataclass(frozen=True)
class Pair(Record):
    """A generated image before and after an edit, with all data needed to regenerate and to refilter it."""

    instruction_id: str
    parent_ids: tuple[str, ...]
    """Ids of its parent records, nearest first: instruction, caption."""
    task: str
    instruction: str
    source_caption: str
    target_caption: str
    seed: int
    """Seed of the first image; 0 if it was not generated."""
    model_revision: str
    """Revision of the base model."""
    recipe: Json = field(metadata=JSON)
    """Settings of the generation: mask widths in px, fractions of the denoising steps, guidance. `image` and `image_hash`: the
    file of the first image, if it was not generated."""
    source: bytes = field(metadata=PNG)
    """The image before: PNG of uint8 [H,W,3]."""
    target: bytes = field(metadata=PNG)
    """The image after: PNG of uint8 [H,W,3]."""
    mask: bytes | None = field(metadata=PNG)
    """Soft mask: PNG of uint8 [H,W], 255 where the image may change; None for a task without a mask."""
    scores: Scores = field(metadata=SCORES)
    """All raw scores by name; None if undefined."""


@dataclass(frozen=True)
class Verdict(Record):
    """Whether a pair is kept, and the reasons if it is not. Rejected pairs have verdicts too.

    Raises ValueError for a kept pair with reasons and for a rejected one without.
    """

    pair_id: str
    kept: bool
    task: str
    """Task of the pair after task reassignment."""
    reasons: tuple[str, ...]
    """Names of the failed filters; empty if kept."""
    filters: Json = field(metadata={**JSON, "stored": "gates"})
    """The thresholds of the applied filters."""
    scores: Scores = field(metadata=SCORES)
    """Raw scores that the filters use; None if undefined."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept == bool(self.reasons):
            raise ValueError(f"want reasons exactly when a pair is not kept, got kept={self.kept} with reasons {self.reasons}")


@dataclass(frozen=True)
class EvalRecord(Record):
    """The output of one system for one edit of a benchmark, and the benchmark's assessment of it."""

    system: str
    task: str
    instruction: str
    source_caption: str
    target_caption: str
    given_task: str
    """The given task, or the task predictor's choice; `no_edit` if it refuses the instruction, and the output is the input."""
    seed: int
    source: bytes = field(metadata=PNG)
    """The image to edit: PNG of uint8 [H,W,3]."""
    output: bytes = field(metadata=PNG)
    """The edited image: PNG of uint8 [H,W,3]."""
    exact: bytes | None = field(metadata={**PNG, **NOT_IN_ID})
    """The reference result, if known."""
    success: bool = field(metadata=NOT_IN_ID)
    """Whether the benchmark accepts the output."""
    reason: str = field(metadata=NOT_IN_ID)
    """Reason for the rejection; empty on success."""
    scores: Scores = field(metadata=SCORES)
    """Metrics of this output; None if undefined."""


@dataclass(frozen=True)
class Drop(Record):
    """An input that a stage dropped, with the reason."""

    subject: str
    """The text, or the id of the record."""
    reason: str
    source: str = field(metadata=NOT_IN_ID)
    index: int = field(metadata=NOT_IN_ID)


def stored_name(record_field: "Field[Any]") -> str:
    """Name of a field in shards and in ids."""
    return str(record_field.metadata.get("stored", record_field.name))


def finite_or_none(score: float | None) -> float | None:
    """The score, or None (undefined) for NaN and infinity, so that one image does not abort a run."""
    return None if score is None or not math.isfinite(score) else score


def _canonical_bytes(value: Any, form: str) -> bytes:
    """Bytes of a field for the hash: shape and pixels of a PNG, sorted JSON of everything else."""
    if form == "png" and value is not None:
        pixels = decode_png(value)
        return f"{list(pixels.shape)}".encode() + pixels.tobytes()
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
