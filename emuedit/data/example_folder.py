"""Read user-provided examples of a task: images before and after an edit, and its instruction.

    examples/edits.csv        image, result, instruction: image file names and the instruction
or  examples/before/*, examples/after/*, with equal names; the instructions are given separately
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emuedit.data import image_io, text_tables

TABLE, BEFORE, AFTER = "edits.csv", "before", "after"
COLUMNS = ("image", "result", "instruction")


class ExampleError(ValueError):
    """Raised for a folder without valid examples."""


@dataclass(frozen=True)
class ExampleEdit:
    """One edit."""

    before: Path
    after: Path
    instruction: str


@dataclass(frozen=True)
class ExamplePictures:
    """The images of N examples, uint8 [N, side, side, 3]."""

    before: npt.NDArray[np.uint8]
    after: npt.NDArray[np.uint8]


def read_examples(folder: Path, instructions: Sequence[str] = ()) -> list[ExampleEdit]:
    """The examples of a folder, in the order of the table or of the file names.

    instructions: for a folder without a table; they are used in turn. Raises ExampleError, which names file and row.
    """
    if (folder / TABLE).is_file():
        if instructions:
            raise ExampleError(f"{folder / TABLE} has an instruction for each example; omit --instruction")
        return _read_table(folder)
    names = {part: {file.name for file in (folder / part).glob("*") if file.is_file()} for part in (BEFORE, AFTER)}
    if not names[BEFORE]:
        raise ExampleError(
            f"want {folder / TABLE} with the columns {', '.join(COLUMNS)}, or {BEFORE}/ and {AFTER}/ there; got neither"
        )
    if unpaired := sorted(names[BEFORE] ^ names[AFTER]):
        raise ExampleError(f"want equal names in {BEFORE}/ and {AFTER}/ of {folder}, got {', '.join(unpaired[:5])} in one only")
    if not instructions:
        raise ExampleError(f"want an instruction for the examples in {folder}: --instruction 'what was done'; got none")
    return [
        ExampleEdit(folder / BEFORE / name, folder / AFTER / name, instructions[row % len(instructions)])
        for row, name in enumerate(sorted(names[BEFORE]))
    ]


def load_pictures(examples: Sequence[ExampleEdit], side_px: int) -> ExamplePictures:
    """The centre squares of the images, scaled to side_px. Raises ExampleError for a pair of unequal sizes."""
    before, after = [], []
    for example in examples:
        first, second = (image_io.read_image(file).pixels for file in (example.before, example.after))
        if first.shape != second.shape:
            sizes = " and ".join(f"{picture.shape[1]} x {picture.shape[0]}" for picture in (first, second))
            raise ExampleError(f"want images of one size, got {sizes} px in {example.before} and {example.after}")
        before.append(image_io.fit_square(first, side_px))
        after.append(image_io.fit_square(second, side_px))
    return ExamplePictures(np.stack(before), np.stack(after))


def _read_table(folder: Path) -> list[ExampleEdit]:
    file = folder / TABLE
    text_tables.check_file(file)
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise ExampleError(f"{file}: want the columns {', '.join(COLUMNS)}, got none called {', '.join(missing)}")
        rows = [{name: (row[name] or "").strip() for name in COLUMNS} for row in reader]
    examples = []
    for line, row in enumerate(rows, start=2):
        for column in ("image", "result"):
            if not row[column] or not (folder / row[column]).is_file():
                raise ExampleError(f"{file}, line {line}: want an image in {folder} as {column}, got {row[column]!r}")
        if not row["instruction"]:
            raise ExampleError(f"{file}, line {line}: want an instruction, got none")
        examples.append(ExampleEdit(folder / row["image"], folder / row["result"], row["instruction"]))
    if not examples:
        raise ExampleError(f"{file}: want one example or more, got none")
    return examples
