"""Read user-provided examples of a task: images before and after an edit, and its instruction.

    examples/edits.csv        image, result, instruction: image file names and the instruction; optional: input_caption,
                              output_caption
or  examples/before/*, examples/after/*, with equal names; the instructions are given separately
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emuedit.data import image_io
from emuedit.data.edit_table import join_problems, read_edit_table
from emuedit.data.text_tables import TableError

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
    source_caption: str = ""
    target_caption: str = ""


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
    names = {part: {file.name for file in (folder / part).glob("[!.]*") if file.is_file()} for part in (BEFORE, AFTER)}
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
    try:
        rows = read_edit_table(file, COLUMNS)
    except TableError as error:
        raise ExampleError(str(error)) from error
    problems = [f"line {line}: {problem}" for line, row in enumerate(rows, start=2) if (problem := _row_problem(row, folder))]
    if problems:
        raise ExampleError(f"{file}: {join_problems(problems)}")
    return [
        ExampleEdit(
            folder / row["image"],
            folder / row["result"],
            row["instruction"],
            row.get("input_caption", ""),
            row.get("output_caption", ""),
        )
        for row in rows
    ]


def _row_problem(row: dict[str, str], folder: Path) -> str:
    """The problem of a row, or an empty string."""
    for column in ("image", "result"):
        if not row[column] or not (folder / row[column]).is_file():
            return f"want an image in {folder} as {column}, got {row[column]!r}"
    return "" if row["instruction"] else "want an instruction, got none"
