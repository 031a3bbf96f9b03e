"""Decide which pairs may be mirrored as augmentation."""

from __future__ import annotations

import re

from emuedit.tasks import get_task

SIDED = re.compile(
    r"\b(left|right|(counter|anti)?-?clockwise|east|west|letter|word|text(?!ur)|writ|wrot|typ(e|ing)|say|said|read|sign|spell|number|"
    r"digit|caption|label|logo|initial|title|name)|[0-9\"“”„«»]|(?<!\w)['‘’]|['’](?!\w)",
    re.IGNORECASE,
)
"""Instructions with a word that starts like this, with digits or with quoted text may have another meaning in a mirrored image,
or the image may contain letters. If in doubt, a pair is not mirrored."""


def has_no_side(instruction: str) -> bool:
    """Whether an instruction means the same in a mirrored image, whatever its task."""
    return SIDED.search(instruction) is None


def may_flip(task: str, instruction: str) -> bool:
    """Whether the instruction still holds when the images are mirrored."""
    return get_task(task).mirrorable and has_no_side(instruction)
