"""One row of somebody's dataset -> a Pair, or the reason why it is none."""

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from emuedit.data import image_io
from emuedit.data.formats.pair_format import NOTE, SCORE, Column, FormatError, PairFormat
from emuedit.data.png import encode_png
from emuedit.data.records import Pair
from emuedit.runtime import seed_for

NO_SEED = -1  # of pairs whose makers tell none
MISFIT = 0.01  # how far the shape of a mask may differ from that of its picture; ours

Tasks = Callable[[Sequence[str]], Sequence[str]]
"""Instructions -> the task of each."""


@dataclass(frozen=True)
class ImportOptions:
    """What to make of the rows. Raises FormatError when their tasks are told twice or not at all, and for too small a size."""

    layout: PairFormat
    size: int | None
    """Pixels a side; None keeps what is there."""
    task: str
    """How the tasks are told, in words."""
    tasks: Tasks | None
    """Tells them; None for a layout that brings its tasks."""

    def __post_init__(self) -> None:
        if (self.tasks is None) != ("task" in self.layout.fields):
            mend = "say --task or --router" if self.tasks is None else "leave --task and --router out"
            raise FormatError(f"want the tasks of {self.layout.name} told once, got {self.task}; {mend}")
        if self.size is not None and self.size < image_io.MIN_SIDE_PX:
            raise FormatError(
                f"want pictures of {image_io.MIN_SIDE_PX} pixels a side or more, got {self.size}; say another --size"
            )

    def pair(self, row: Mapping[str, Any], columns: Mapping[str, Column]) -> Pair | str:
        """The heart. The task is "" where `tasks` is still to tell it.

        Pictures of any mode are made upright RGB. With a size, the middle square is cut out of all three pictures alike and
        scaled (Lanczos): stretching would teach wrong shapes, and one cut for all keeps the pixels in register.
        """
        said = {column.field: row[name] for name, column in columns.items()}
        instruction = " ".join((said["instruction"] or "").split())
        if not instruction:
            return "empty_instruction"
        pictures: dict[str, npt.NDArray[np.uint8]] = {}
        for field in ("source", "target"):
            try:
                pictures[field] = image_io.read_image(_bytes(said[field])).pixels
            except image_io.ImageError:
                return f"{field}_unreadable"
        height, width, _ = pictures["source"].shape
        if pictures["target"].shape != (height, width, 3):
            return "sizes_differ"
        mask = _mask(said["mask"], width, height) if said.get("mask") else None
        if isinstance(mask, str):
            return mask
        captions: dict[str, str] = {field: said.get(field) or "" for field in ("source_caption", "target_caption")}
        scores = {name: row[name] for name, column in columns.items() if column.field == SCORE}
        origin = self._own(said) if self.layout.family is None else self._origin(row, columns, instruction, captions)
        return Pair(
            **origin | captions,
            instruction=instruction,
            source=self._png(pictures["source"]),
            target=self._png(pictures["target"]),
            mask=None if mask is None else self._png(mask),
            scores={name.removeprefix(self.layout.scores or ""): _defined(value) for name, value in scores.items()},
        )

    def _own(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Of a pair that was ours: as it was."""
        told = {field: said[field] for field in ("task", "seed", "model_revision", "instruction_id")}
        return told | {"recipe": json.loads(said["recipe"]), "parent_ids": tuple(said["parent_ids"])}

    def _origin(
        self, row: Mapping[str, Any], columns: Mapping[str, Column], instruction: str, captions: Mapping[str, str]
    ) -> dict[str, Any]:
        """Of another's pair: what its makers do not say, or say in their own way. Candidates of one edit share an id."""
        family = str(row[str(self.layout.family)])
        parents = (
            _id(self.layout.name, "instruction", family, instruction, captions["target_caption"]),
            _id(self.layout.name, "family", family),
        )
        notes = {name: row[name] for name, column in columns.items() if column.field == NOTE}
        recipe = {"kind": "import", "layout": self.layout.name, **notes}
        made: dict[str, Any] = {"task": "", "seed": NO_SEED, "model_revision": self.layout.source, "recipe": recipe}
        return made | {"instruction_id": parents[0], "parent_ids": parents}

    def _png(self, pixels: npt.NDArray[np.uint8]) -> bytes:
        if self.size is None:
            return encode_png(pixels)
        square = ImageOps.fit(Image.fromarray(pixels), (self.size, self.size), Image.Resampling.LANCZOS)
        return encode_png(np.asarray(square))


def mark(pair: Pair) -> bytes:
    """What makes two pairs duplicates: the same pictures and the same words. The same pixels have the same bytes."""
    digest = hashlib.blake2b(pair.instruction.encode(), digest_size=16)
    for picture in (pair.source, pair.target):
        digest.update(len(picture).to_bytes(8, "big") + picture)
    return digest.digest()


def _mask(value: Mapping[str, Any], width: int, height: int) -> npt.NDArray[np.uint8] | str:
    """uint8 [H,W], 255 where to edit: where a picture with an alpha channel is clear, and where one without is white.

    A mask of another resolution is scaled to the picture's; one of another shape is no mask of this picture.
    """
    try:
        with Image.open(io.BytesIO(_bytes(value))) as picture:
            clear = picture.has_transparency_data
            grey = picture.convert("RGBA").getchannel("A") if clear else picture.convert("L")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return "mask_unreadable"
    if abs(grey.width * height / (grey.height * width) - 1) > MISFIT:
        return "mask_shape_differs"
    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.LANCZOS)
    found = np.asarray(grey, dtype=np.uint8)
    return 255 - found if clear else found


def _defined(score: float | None) -> float | None:
    """The score, None for the NaN by which some makers say that it is undefined."""
    return None if score is None or math.isnan(score) else score


def _bytes(value: Mapping[str, Any] | None) -> bytes:
    """The file in a picture's cell; none where the cell is empty or only names a path, which nobody can open here."""
    return (value or {}).get("bytes") or b""


def _id(*keys: str) -> str:
    return f"{seed_for('layouts', *keys):016x}"
