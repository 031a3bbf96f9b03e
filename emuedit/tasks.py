"""The table of tasks: sixteen trained tasks, and five that are learned only by task inversion.

This is the only list of tasks. A new task is one row here and one prompt file, `emuedit/prompts/<name>.yaml`. Each world, such as
the toy world, must also support it (`docs/architecture.md`).
The index of a task is its row in the learned task embedding: never change it once an editor is trained.
"""

from dataclasses import dataclass
from typing import Literal

from emuedit.name_hints import closest_match

Family = Literal["region", "free-form", "vision"]
Need = Literal["required", "optional", "unused"]
Region = Literal["object", "background", "whole"]


@dataclass(frozen=True)
class Task:
    """A kind of edit, and the properties that the stages need."""

    name: str
    family: Family
    index: int | None
    """Row in the task embedding; None for a task that is never trained on."""
    description: str
    original_object: Need = "unused"
    """Whether an instruction names the object that is edited."""
    edited_object: Need = "unused"
    """Whether an instruction names the object or scene that results."""
    region: Region = "whole"
    """The edited region: the named object, everything except the named objects, or the whole image."""
    annotated: bool = False
    """True: an annotator draws the target. False: the base model generates it."""
    bidirectional: bool = False
    """Whether the task converts both from image to map and from map to image."""
    reversed: bool = False
    """Whether the pair is built in reverse: the target is generated first, and the source from it."""
    changes_caption: bool = True
    """Whether the caption of the result must differ from that of the source; captions rarely mention brightness."""
    mirrorable: bool = True
    """Whether the instruction still holds when the images are mirrored."""
    keeps_detail: bool = False
    """Whether the result has the image's fine detail, stronger or weaker, so that an edit of a smaller copy applies to it."""


TASKS: tuple[Task, ...] = (
    Task("local", "region", 0, "replace an object or alter one of its attributes", "required", "required", "object"),
    Task("remove", "region", 1, "erase an object and show what is behind it", "required", "unused", "object"),
    Task("add", "region", 2, "put a new object into the image", "unused", "required", "object", reversed=True),
    Task("texture", "region", 3, "change the surface of an object and keep its shape", "required", "required", "object"),
    Task("background", "region", 4, "change what is behind the objects", "optional", "required", "background"),
    Task(
        "global", "free-form", 5, "change the light, the weather or the season of the whole image", "unused", "optional",
        keeps_detail=True,
    ),
    Task("style", "free-form", 6, "redraw the whole image in another style", "unused", "optional"),
    Task(
        "text", "free-form", 7, "write, change or erase letters in the image", "required", "required", "object",
        mirrorable=False,
    ),
    Task("detect", "vision", 8, "draw a box around an object", "required", "optional", "object", annotated=True),
    Task("segment", "vision", 9, "fill an object with a flat colour", "required", "optional", "object", annotated=True),
    Task(
        "color", "vision", 10, "adjust brightness, contrast, saturation, hue, blur or sharpness", "unused", "required",
        annotated=True, changes_caption=False, keeps_detail=True,
    ),
    Task("depth", "vision", 11, "image to depth map and back", annotated=True, bidirectional=True),
    Task("sketch", "vision", 12, "image to line drawing and back", annotated=True, bidirectional=True),
    Task("normal", "vision", 13, "image to map of surface normals and back", annotated=True, bidirectional=True),
    Task("pose", "vision", 14, "image to skeleton of a figure and back", annotated=True, bidirectional=True),
    Task("segmap", "vision", 15, "image to map of all segments and back", annotated=True, bidirectional=True),
)  # fmt: skip

HELD_OUT: tuple[Task, ...] = (
    Task("superres", "vision", None, "enlarge the detail of an image four times"),
    Task("contour", "vision", None, "draw the outlines of the objects only"),
    Task("inpaint", "region", None, "fill a grey region so that it fits the rest"),
    Task("add_detect", "region", None, "put a new object into the image and draw a box around it"),
    Task("cutout", "region", None, "put the objects on plain white, as in a catalogue", region="background"),
)
ALL_TASKS = tuple(task.name for task in TASKS)
"""Names of TASKS, in the same order."""


class UnknownTaskError(ValueError):
    """Raised for a task name that is neither trained nor held out."""


def find_task(name: str) -> Task | None:
    """The task called `name`; None for a task that a task pack added."""
    return next((task for task in (*TASKS, *HELD_OUT) if task.name == name), None)


def edits_an_object(name: str) -> bool:
    """Whether the task called `name` edits only a named object; False for a task that is not in the table."""
    task = find_task(name)
    return task is not None and task.region == "object"


def keeps_objects(name: str) -> bool:
    """Whether the trained task called `name` edits everything except the named objects; False for other tasks."""
    task = find_task(name)
    return task is not None and task.region == "background" and task.index is not None


def keeps_detail(name: str) -> bool:
    """Whether results of the task called `name` keep the image's fine detail; False for a task that is not in the table."""
    task = find_task(name)
    return task is not None and task.keeps_detail


def is_annotated(name: str) -> bool:
    """Whether an annotator draws the target of the task called `name`; False for a task that is not in the table."""
    task = find_task(name)
    return task is not None and task.annotated


def changes_whole_image(name: str) -> bool:
    """Whether the result of the task `name` is a new image, no pixel of which has to equal the input; False for unknown tasks."""
    task = find_task(name)
    return task is not None and task.region == "whole" and task.family != "region"


def get_task(name: str) -> Task:
    """The task called `name`. Raises UnknownTaskError, which lists the valid names."""
    task = find_task(name)
    if task is not None:
        return task
    names = [known_task.name for known_task in (*TASKS, *HELD_OUT)]
    raise UnknownTaskError(f"want one of the tasks {', '.join(names)}; got {name!r}{closest_match(name, names)}")
