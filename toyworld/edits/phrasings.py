"""Instruction templates and caption templates of the edits.

The instruction templates are in `templates/<task>.yaml`, split into templates for the training data and templates that are used
only to measure the task predictor. `exact_edits` and `rule_llm` fill in the `{...}` fields. The constants below are the
training templates. The texts are training data: changing words changes results.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

TemplateSplit = Literal["training", "held_out"]
Case = tuple[str, str]
"""A task and one of its cases, such as ("local", "colour"); ("detect", "") for a task without cases."""

TEMPLATE_SPLITS: tuple[TemplateSplit, ...] = ("training", "held_out")
TEMPLATES_FOLDER = Path(__file__).parent / "templates"
_SHARED_FILE = "shared"
_NO_CASE = "any"


@dataclass(frozen=True)
class TemplateTable:
    """The instruction templates of one split."""

    by_case: Mapping[Case, tuple[str, ...]]
    """Templates that belong to one task."""
    shared: Mapping[Case, tuple[str, ...]]
    """Templates that also fit another task, or are unambiguous only for some images."""

    def of(self, task: str, case: str = "") -> tuple[str, ...]:
        """The templates of a case without the shared ones; empty for a case that has none."""
        return self.by_case.get((task, case), ())

    def shared_of(self, task: str, case: str = "") -> tuple[str, ...]:
        """The shared templates of a case; empty for a case that has none."""
        return self.shared.get((task, case), ())

    def cases_of(self, task: str) -> dict[str, tuple[str, ...]]:
        """Case -> templates, without the shared ones."""
        return {case: templates for (owner, case), templates in self.by_case.items() if owner == task}


@cache
def template_table(split: TemplateSplit) -> TemplateTable:
    """The templates of a split: 'training', or 'held_out', which no training data use. Raises ValueError for another name."""
    if split not in TEMPLATE_SPLITS:
        raise ValueError(f"want one of the template splits {', '.join(TEMPLATE_SPLITS)}; got {split!r}")
    by_case: dict[Case, tuple[str, ...]] = {}
    for file in sorted(TEMPLATES_FOLDER.glob("*.yaml")):
        if file.stem != _SHARED_FILE:
            for case, splits in _read_cases(file).items():
                by_case[file.stem, "" if case == _NO_CASE else case] = tuple(splits.get(split, ()))
    shared: dict[Case, tuple[str, ...]] = {}
    for group in _read_cases(TEMPLATES_FOLDER / f"{_SHARED_FILE}.yaml").values():
        for name in group["tasks"]:
            task, _, case = name.partition("/")
            shared[task, case] = shared.get((task, case), ()) + tuple(group.get(split, ()))
    return TemplateTable(by_case, {case: templates for case, templates in shared.items() if templates})


def _read_cases(file: Path) -> dict[str, dict[str, Any]]:
    """Case -> split -> templates, as in the file."""
    return yaml.safe_load(file.read_text(encoding="utf-8"))


_TRAINING = template_table("training")

LOCAL_COLOUR = _TRAINING.of("local", "colour")
LOCAL_SHAPE = _TRAINING.of("local", "shape")
REMOVE = _TRAINING.of("remove")
ADD = _TRAINING.of("add")
TEXTURE = _TRAINING.of("texture")
TEXTURE_CASES = {case: templates for case, templates in _TRAINING.cases_of("texture").items() if case}
"""Texture -> templates with a specific wording for it: "put stripes on {the}"."""
BACKGROUND = _TRAINING.of("background")
GLOBAL = _TRAINING.cases_of("global")
STYLE = _TRAINING.of("style")
STYLE_CASES = {case: templates for case, templates in _TRAINING.cases_of("style").items() if case}
"""Style -> templates with a specific wording for it: "like in a comic book"."""
A_STYLE = {
    "photo": "a photo",
    "pencil sketch": "a pencil sketch",
    "pixel art": "pixel art",
    "cartoon": "a cartoon",
    "watercolour": "a watercolour",
}
TEXT = _TRAINING.of("text")
DETECT = _TRAINING.of("detect")
SEGMENT = _TRAINING.of("segment")
COLOR = _TRAINING.cases_of("color")
MAPS = {task: _TRAINING.of(task, "to_map") for task in ("depth", "normal", "sketch", "segmap", "pose")}
MAP_CAPTION = {  # caption of a map, where {caption} describes the image
    "depth": "a depth map of {caption}",
    "normal": "a normal map of {caption}",
    "sketch": "a line drawing of {caption}",
    "segmap": "a segmentation map of {caption}",
    "pose": "a skeleton of {caption}",
}
ANNOTATED_CAPTION = {  # caption of an image with a box or a mask
    "detect": "{caption} with a box around the {noun}",
    "segment": "{caption} with a mask on the {noun}",
}
FROM_MAP = {task: _TRAINING.of(task, "from_map") for task in MAPS}
HELD_OUT = {  # tasks that are never trained on
    "superres": ("increase the resolution four times", "make it four times sharper", "upscale the picture"),
    "contour": ("show the contours", "white outlines on black", "trace the contours"),
    "inpaint": ("fill the grey area", "fill in the hole", "complete the picture"),
    "cutout": ("cut out the objects", "put everything on a white background", "isolate the objects on white"),
    "add_detect": ("add {a_new} and draw a box around it", "put in {a_new} and box it"),
}

SHARED: Mapping[Case, tuple[str, ...]] = _TRAINING.shared
"""(task, case) -> templates. Most intentionally fit several tasks: only the task label determines the edit."""
