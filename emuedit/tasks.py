"""The table of tasks: sixteen that the editor is trained on, and five that it meets only through task inversion.

This is the only list of tasks. A new task is one row here and one prompt file, `emuedit/prompts/<name>.yaml`. The toy world, as
any world, must also be able to show it (`docs/architecture.md`).
The index of a task is its row in the learned task embedding: it never changes once an editor was trained.
"""

from dataclasses import dataclass
from typing import Literal

from emuedit.name_hints import closest_match

Family = Literal["region", "free-form", "vision"]
Need = Literal["required", "optional", "unused"]
Region = Literal["object", "background", "whole"]


@dataclass(frozen=True)
class Task:
    """One kind of edit, and what the stages need to know about it."""

    name: str
    family: Family
    index: int | None
    """Row in the task embedding; None for a task that is never trained on."""
    description: str
    original_object: Need = "unused"
    """Whether an instruction names the object that is edited."""
    edited_object: Need = "unused"
    """Whether an instruction names what is there afterwards."""
    region: Region = "whole"
    """What is edited: the named object, all but the named objects, or the whole picture."""
    annotated: bool = False
    """True: an annotator draws the target. False: the base model generates it."""
    bidirectional: bool = False
    """Whether the task goes from a picture to a map and from the map to the picture."""
    reversed: bool = False
    """Whether the pair is built backwards: the target is generated first, and the source is made from it."""
    changes_caption: bool = True
    """Whether the caption of the result must differ from that of the source; captions seldom mention brightness."""
    mirrorable: bool = True
    """Whether picture and instruction still agree when the pictures are mirrored."""
    keeps_detail: bool = False
    """Whether the result has the picture's fine detail, so that an edit of its smaller copy can be added to it."""


TASKS: tuple[Task, ...] = (
    Task("local", "region", 0, "replace an object or alter one of its attributes", "required", "required", "object"),
    Task("remove", "region", 1, "erase an object and show what is behind it", "required", "unused", "object"),
    Task("add", "region", 2, "put a new object into the picture", "unused", "required", "object", reversed=True),
    Task("texture", "region", 3, "change the surface of an object and keep its shape", "required", "required", "object"),
    Task("background", "region", 4, "change what is behind the objects", "optional", "required", "background"),
    Task(
        "global", "free-form", 5, "change the light, the weather or the season of the whole picture", "unused", "optional",
        keeps_detail=True,
    ),
    Task("style", "free-form", 6, "redraw the whole picture in another style", "unused", "optional"),
    Task(
        "text", "free-form", 7, "write, change or erase letters in the picture", "required", "required", "object",
        mirrorable=False,
    ),
    Task("detect", "vision", 8, "draw a box around an object", "required", "optional", "object", annotated=True),
    Task("segment", "vision", 9, "fill an object with a flat colour", "required", "optional", "object", annotated=True),
    Task(
        "color", "vision", 10, "adjust brightness, contrast, saturation, hue, blur or sharpness", "unused", "required",
        annotated=True, changes_caption=False, keeps_detail=True,
    ),
    Task("depth", "vision", 11, "picture to depth map and back", annotated=True, bidirectional=True),
    Task("sketch", "vision", 12, "picture to line drawing and back", annotated=True, bidirectional=True),
    Task("normal", "vision", 13, "picture to map of surface normals and back", annotated=True, bidirectional=True),
    Task("pose", "vision", 14, "picture to skeleton of a figure and back", annotated=True, bidirectional=True),
    Task("segmap", "vision", 15, "picture to map of all segments and back", annotated=True, bidirectional=True),
)  # fmt: skip

HELD_OUT: tuple[Task, ...] = (
    Task("superres", "vision", None, "enlarge the detail of a picture four times"),
    Task("contour", "vision", None, "draw the outlines of the objects only"),
    Task("inpaint", "region", None, "fill a grey region so that it fits the rest"),
    Task("add_detect", "region", None, "put a new object into the picture and draw a box around it"),
    Task("cutout", "region", None, "put the objects on plain white, as in a catalogue", region="background"),
)
ALL_TASKS = tuple(task.name for task in TASKS)
"""Names of TASKS, in the same order."""


class UnknownTaskError(ValueError):
    """Raised for a task name that is neither trained nor held out."""


def find_task(name: str) -> Task | None:
    """The task called `name`; None for one that a task pack brought and the table lacks."""
    return next((task for task in (*TASKS, *HELD_OUT) if task.name == name), None)


def edits_an_object(name: str) -> bool:
    """Whether the task called `name` edits a named object alone; no for a task that the table lacks."""
    task = find_task(name)
    return task is not None and task.region == "object"


def get_task(name: str) -> Task:
    """The task called `name`. Raises UnknownTaskError, which lists the valid names."""
    task = find_task(name)
    if task is not None:
        return task
    names = [known_task.name for known_task in (*TASKS, *HELD_OUT)]
    raise UnknownTaskError(f"want a task out of {', '.join(names)}; got {name!r}{closest_match(name, names)}")
