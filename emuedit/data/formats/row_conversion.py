"""Convert one row of a published dataset to a Pair, or state why it is rejected."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from emuedit.data import image_io
from emuedit.data.formats.pair_format import NOTE, SCORE, Column, FormatError, PairFormat
from emuedit.data.png import encode_png
from emuedit.data.records import Pair, finite_or_none
from emuedit.runtime import seed_for
from emuedit.tasks import find_task

NO_SEED = -1
"""Seed of pairs from datasets without seeds."""
MAX_ASPECT_ERROR = 0.01
"""Largest relative difference between the aspect ratios of mask and image. Ours."""

_FEWEST_PARENTS = 2
"""The parents of a Pair: its instruction and its caption, by which training holds out pairs."""

AssignTasks = Callable[[Sequence[str]], Sequence[str]]
"""Instructions -> tasks."""


@dataclass(frozen=True)
class RowRejected:
    """A row that cannot be converted to a pair."""

    reason: str


@dataclass(frozen=True)
class ImportOptions:
    """Options of the conversion.

    Raises FormatError if tasks are assigned although the dataset has them, if they are neither given nor
    assigned, and if the size is too small.
    """

    pair_format: PairFormat
    size: int | None
    """Height and width of the images in px; None keeps the original sizes."""
    task_origin: str
    """Origin of the tasks, as text for the data card."""
    assign_tasks: AssignTasks | None
    """None for a format with tasks."""

    def __post_init__(self) -> None:
        if (self.assign_tasks is None) != ("task" in self.pair_format.fields):
            fix = "add --task or --router" if self.assign_tasks is None else "omit --task and --router"
            raise FormatError(f"want one origin for the tasks of {self.pair_format.name}, got {self.task_origin}; {fix}")
        if self.size is not None and self.size < image_io.MIN_SIDE_PX:
            raise FormatError(
                f"want images of {image_io.MIN_SIDE_PX} pixels per side or more, got {self.size}; set another --size"
            )

    def convert_row(self, row: Mapping[str, Any], columns: Mapping[str, Column]) -> Pair | RowRejected:
        """Convert one row. The task of the pair is "" if `assign_tasks` sets it later.

        Images of any mode are converted to upright RGB. With a size, the centre square of source, target and mask is
        cropped and resized (Lanczos): this keeps shapes undistorted and pixels aligned.
        """
        values = {column.field: row[name] for name, column in columns.items()}
        instruction = " ".join((values["instruction"] or "").split())
        if not instruction:
            return RowRejected("empty_instruction")
        pictures: dict[str, npt.NDArray[np.uint8]] = {}
        for field in ("source", "target"):
            try:
                pictures[field] = image_io.read_image(_picture_bytes(values[field])).pixels
            except image_io.ImageError:
                return RowRejected(f"{field}_unreadable")
        height, width, _ = pictures["source"].shape
        if pictures["target"].shape != (height, width, 3):
            return RowRejected("sizes_differ")
        mask = _read_mask(values["mask"], width, height) if values.get("mask") else None
        if isinstance(mask, RowRejected):
            return mask
        captions: dict[str, str] = {field: values.get(field) or "" for field in ("source_caption", "target_caption")}
        scores = {name: row[name] for name, column in columns.items() if column.field == SCORE}
        if self.pair_format.family is None:
            try:
                origin = self._own_origin(values)
            except (ValueError, TypeError, AttributeError):  # invalid JSON, or an empty cell
                return RowRejected("origin_unreadable")
            if not _is_trained(origin["task"]):
                return RowRejected("unknown_task")
        else:
            origin = self._imported_origin(row, columns, instruction, captions)
        return Pair(
            **origin | captions,
            instruction=instruction,
            source=self._encode(pictures["source"]),
            target=self._encode(pictures["target"]),
            mask=None if mask is None else self._encode(mask),
            scores={name.removeprefix(self.pair_format.scores or ""): finite_or_none(value) for name, value in scores.items()},
        )

    def _own_origin(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Provenance fields of a pair in our format, unchanged."""
        fields = {field: values[field] for field in ("task", "seed", "model_revision", "instruction_id")}
        recipe, parents = json.loads(values["recipe"]), tuple(values["parent_ids"])
        json.dumps(recipe, allow_nan=False)  # ids are hashes of JSON, which has no NaN
        if None in (*fields.values(), *parents) or not isinstance(recipe, dict):
            raise ValueError("want a value in each of these cells, got an empty one")
        if len(parents) < _FEWEST_PARENTS:
            raise ValueError(f"want the ids of the instruction and the caption, got {len(parents)} ids")
        return fields | {"recipe": recipe, "parent_ids": parents}

    def _imported_origin(
        self, row: Mapping[str, Any], columns: Mapping[str, Column], instruction: str, captions: Mapping[str, str]
    ) -> dict[str, Any]:
        """Provenance fields of a pair from another dataset. Candidates of one edit share an instruction id."""
        family = str(row[str(self.pair_format.family)])
        parents = (
            _hash_id(self.pair_format.name, "instruction", family, instruction, captions["target_caption"]),
            _hash_id(self.pair_format.name, "family", family),
        )
        notes = {name: row[name] for name, column in columns.items() if column.field == NOTE}
        return {
            "task": "",
            "seed": NO_SEED,
            "model_revision": self.pair_format.source,
            "recipe": {"kind": "import", "layout": self.pair_format.name, **notes},
            "instruction_id": parents[0],
            "parent_ids": parents,
        }

    def _encode(self, pixels: npt.NDArray[np.uint8]) -> bytes:
        return encode_png(pixels if self.size is None else image_io.fit_square(pixels, self.size))


def duplicate_key(pair: Pair) -> bytes:
    """Digest of instruction, source and target: equal for duplicates, because equal pixels have equal PNG bytes."""
    digest = hashlib.blake2b(pair.instruction.encode(), digest_size=16)
    for png in (pair.source, pair.target):
        digest.update(len(png).to_bytes(8, "big") + png)
    return digest.digest()


def _is_trained(task: str) -> bool:
    """Whether the task has a row in the task embedding."""
    task_in_table = find_task(task)
    return task_in_table is not None and task_in_table.index is not None


def _read_mask(value: Mapping[str, Any], width: int, height: int) -> npt.NDArray[np.uint8] | RowRejected:
    """Mask uint8 [H,W], 255 in the edited region, see `image_io.read_mask`.

    A mask of another resolution is resized to the image; a mask of another aspect ratio is rejected.
    """
    try:
        mask = image_io.read_mask(_picture_bytes(value))
    except image_io.ImageError:
        return RowRejected("mask_unreadable")
    mask_height, mask_width = mask.shape
    if abs(mask_width * height / (mask_height * width) - 1) > MAX_ASPECT_ERROR:
        return RowRejected("mask_shape_differs")
    if mask.shape == (height, width):
        return mask
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.LANCZOS))


def _picture_bytes(value: Mapping[str, Any] | None) -> bytes:
    """Bytes of the image file in a cell; empty for a cell that is empty or has only a path."""
    return (value or {}).get("bytes") or b""


def _hash_id(*keys: str) -> str:
    return f"{seed_for('layouts', *keys):016x}"
