"""Read user-provided examples of a task: images before and after an edit, and its instruction.

    examples/edits.csv        image, result, instruction: image file names and the instruction; optional: input_caption,
                              output_caption
or  examples/before/*, examples/after/*, with equal names, or with names that are equal without their suffixes and unique so; the
    instructions are given separately
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emuedit.data import image_io
from emuedit.data.edit_table import find_image_problem, join_problems, read_edit_table
from emuedit.data.name_list import first_names
from emuedit.data.text_tables import TableError

TABLE, BEFORE, AFTER = "edits.csv", "before", "after"
COLUMNS = ("image", "result", "instruction")
NOISE_LEVELS = 12
"""Largest difference of a pixel, of 255 levels, that may be JPEG noise. Ours."""
CHANGED_SHARE = 0.001
"""Share of pixels above NOISE_LEVELS from which two images differ: fine detail, as in sharpening. Ours."""
CELL_PX, CELL_LEVELS = 8, 2.0
"""Two images differ too if the mean difference of a cell of 8 x 8 px exceeds 2 of 255 levels in a channel: a slight change of
colour, or a small object. JPEG noise has a mean near 0. Ours."""


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
    before, after = ({file.name for file in (folder / part).glob("[!.]*") if file.is_file()} for part in (BEFORE, AFTER))
    if not before:
        raise ExampleError(
            f"want {folder / TABLE} with the columns {', '.join(COLUMNS)}, or {BEFORE}/ and {AFTER}/ there; got neither"
        )
    after_of = _match_names(before, after)
    if unpaired := sorted((before - after_of.keys()) ^ (after - set(after_of.values()))):
        raise ExampleError(
            f"want equal names in {BEFORE}/ and {AFTER}/ of {folder}, got {first_names(unpaired)} in one only; rename or convert "
            f"them, or list the pairs in {folder / TABLE}"
        )
    if not instructions:
        raise ExampleError(f"want an instruction for the examples in {folder}: --instruction 'what was done'; got none")
    return [
        ExampleEdit(folder / BEFORE / name, folder / AFTER / after_of[name], instructions[row % len(instructions)])
        for row, name in enumerate(sorted(before))
    ]


def _match_names(before: Set[str], after: Set[str]) -> dict[str, str]:
    """File name before -> after: equal names, or names with the same stem if no two files of a folder have it."""
    if before == after:
        return {name: name for name in before}
    by_stem = [{Path(name).stem: name for name in names} for names in (before, after)]
    if any(len(stems) < len(names) for stems, names in zip(by_stem, (before, after), strict=True)):
        return {name: name for name in before & after}
    return {name: by_stem[1][stem] for stem, name in by_stem[0].items() if stem in by_stem[1]}


def load_pictures(examples: Sequence[ExampleEdit], side_px: int) -> ExamplePictures:
    """The centre squares of the images, scaled to side_px.

    Raises ExampleError, which names the files, for a pair of unequal sizes and for pairs whose squares hardly differ
    (`hardly_differ`), which would teach the task to change nothing.
    """
    before, after, problems = [], [], []
    for example in examples:
        first, second = (image_io.read_image(file).pixels for file in (example.before, example.after))
        if first.shape != second.shape:
            sizes = " and ".join(f"{picture.shape[1]} x {picture.shape[0]}" for picture in (first, second))
            raise ExampleError(f"want images of one size, got {sizes} px in {example.before} and {example.after}")
        before.append(image_io.fit_square(first, side_px))
        after.append(image_io.fit_square(second, side_px))
        if hardly_differ(before[-1], after[-1]):
            names = f"{example.before} and {example.after}"
            problems.append(f"{names} are equal" if np.array_equal(first, second) else f"{names} hardly differ there")
    if problems:
        raise ExampleError(
            f"want an edit in the centre square of each image, scaled to {side_px} px, got none: {join_problems(problems)}; crop "
            "both images around the edit, or remove the example"
        )
    return ExamplePictures(np.stack(before), np.stack(after))


def hardly_differ(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> bool:
    """Whether two images uint8 [H, W, 3] differ by no more than weak JPEG noise.

    So neither in fine detail (`CHANGED_SHARE` of the pixels by more than `NOISE_LEVELS` in a channel) nor in the mean of a cell
    (`CELL_PX`, `CELL_LEVELS`). JPEG noise of detailed images, which resembles sharpening, exceeds these bounds: such pairs count
    as different, so that no valid example is refused.
    """
    difference = after.astype(np.int16) - before
    if (np.abs(difference).max(-1) > NOISE_LEVELS).mean() >= CHANGED_SHARE:
        return False
    rows, columns = (np.arange(0, side, CELL_PX) for side in before.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(difference, rows, 0, np.int32), columns, 1, np.int32)
    heights, widths = (np.diff(starts, append=side) for starts, side in zip((rows, columns), before.shape[:2], strict=True))
    return bool((np.abs(sums) <= CELL_LEVELS * np.outer(heights, widths)[..., None]).all())


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
        if problem := find_image_problem(folder, column, row[column]):
            return problem
    return "" if row["instruction"] else "want an instruction, got none"
