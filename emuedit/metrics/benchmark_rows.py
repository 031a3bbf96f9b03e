"""What the judge can do with a row of a benchmark's table, see `photo_benchmark`; no image is decoded."""

import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path

from emuedit.data import image_io
from emuedit.data.edit_table import join_problems
from emuedit.models import clip
from emuedit.name_hints import closest_match
from emuedit.tasks import HELD_OUT, TASKS, find_task, get_task

_MAX_ASPECT_ERROR = 0.01
"""Of the aspect ratio of a result with respect to that of its image, if this is more than a pixel."""
_SHOWN = 5
_MIN_COMMON_BYTES = 75
"""Captions that differ earlier also differ in CLIP's 77 tokens: a start, an end, and 75 of at least a byte each."""


def unknown_tasks(rows: Sequence[Mapping[str, str]]) -> str:
    """The problem of all rows with unknown tasks, which names the lines of each of them; empty if there are none.

    rows: of the whole table; the first is in line 2.
    """
    lines: dict[str, list[int]] = {}
    for line, row in enumerate(rows, start=2):
        if find_task(row["task"]) is None:
            lines.setdefault(row["task"], []).append(line)
    if not lines:
        return ""
    names = [task.name for task in (*TASKS, *HELD_OUT)]
    parts = [f"{name!r} in {_name_lines(numbers)}{closest_match(name, names)}" for name, numbers in lines.items()]
    return f"want one of the tasks {', '.join(names)}; got {join_problems(parts)}"


def _name_lines(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    if len(numbers) <= _SHOWN:
        return f"lines {', '.join(map(str, numbers))}"
    return f"lines {', '.join(map(str, numbers[:_SHOWN]))}, ... ({len(numbers)})"


def can_be_judged(row: Mapping[str, str], clip_name: str) -> bool:
    """False for equal captions, which give CLIP no direction of the edit, without a reference result to compare with."""
    return bool(row.get("result")) or not has_equal_captions(row, clip_name)


def is_compared(row: Mapping[str, str], clip_name: str) -> bool:
    """Whether outputs are compared with the row's reference result, without using captions and calibrated bounds."""
    return bool(row.get("result")) and (get_task(row["task"]).annotated or has_equal_captions(row, clip_name))


def has_equal_captions(row: Mapping[str, str], clip_name: str) -> bool:
    """Whether CLIP reads both captions as the same text: it ignores case, spaces, and what is beyond its context length.

    clip_name: the judge's CLIP, see `clip.load`; its tokenizer is loaded for long captions that begin alike.
    """
    before, after = (" ".join(row[column].casefold().split()) for column in ("input_caption", "output_caption"))
    if before == after:
        return True
    starts = [text.encode()[:_MIN_COMMON_BYTES] for text in (before, after)]
    return starts[0] == starts[1] and clip.have_equal_tokens(clip_name, before, after)


def equals_image(row: Mapping[str, str], folder: Path) -> bool:
    """Whether a row's result is a copy of its image."""
    return bool(row.get("result")) and filecmp.cmp(folder / row["image"], folder / row["result"], shallow=False)


def check_aspect(image: Path, result: Path) -> str:
    """The problem of a result with another aspect ratio, whose centre square shows another part; empty without a problem."""
    try:
        (width, height), (result_width, result_height) = image_io.read_size(image), image_io.read_size(result)
    except image_io.ImageError as error:
        return str(error)
    expected_width = width / height * result_height
    if abs(expected_width - result_width) <= max(1, _MAX_ASPECT_ERROR * result_width):
        return ""
    sizes = f"{result_width} x {result_height} of {result.name} for {width} x {height} of {image.name}"
    return f"want a result with the aspect ratio of its image, got {sizes}; crop both alike"
