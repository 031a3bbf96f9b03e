"""Which pairs may be mirrored as augmentation."""

from __future__ import annotations

import re

from emuedit.tasks import get_task

SIDED = re.compile(
    r"\b(left|right|(counter|anti)?-?clockwise|east|west|letter|word|text(?!ur)|writ|wrot|typ(e|ing)|say|said|read|sign|spell|number|"
    r"digit|caption|label|logo|initial|title|name)|[0-9\"“”„«»]|(?<!\w)['‘’]|['’](?!\w)",
    re.IGNORECASE,
)
"""An instruction with a word that begins so, with a digit or with something in quotes may mean another thing in a mirrored
image, or its image may have letters in it. In doubt a pair is not mirrored."""


def may_flip(task: str, instruction: str) -> bool:
    """Whether images and instruction still agree when the images are mirrored."""
    return get_task(task).mirrorable and SIDED.search(instruction) is None
