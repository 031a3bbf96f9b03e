"""The sixteen tasks of the editor and the four it meets only by inversion. This is the only list of them.

The index of a task is its row in the learned table of task embeddings: it never changes once an editor was trained.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

Family = Literal["region", "free-form", "vision"]


@dataclass(frozen=True)
class Task:
    """One kind of edit. `index` is its row in the task table, None for a task that is never trained on."""

    name: str
    family: Family
    index: int | None
    description: str


TASKS: tuple[Task, ...] = (
    Task("local", "region", 0, "replace an object or alter one of its attributes"),
    Task("remove", "region", 1, "erase an object and show what is behind it"),
    Task("add", "region", 2, "put a new object into the picture"),
    Task("texture", "region", 3, "change the surface of an object and keep its shape"),
    Task("background", "region", 4, "change what is behind the objects"),
    Task("global", "free-form", 5, "change the light, the weather or the season of the whole picture"),
    Task("style", "free-form", 6, "redraw the whole picture in another manner"),
    Task("text", "free-form", 7, "write, change or erase letters in the picture"),
    Task("detect", "vision", 8, "draw a box around an object"),
    Task("segment", "vision", 9, "fill an object with a flat colour"),
    Task("color", "vision", 10, "adjust brightness, contrast, saturation, hue, blur or sharpness"),
    Task("depth", "vision", 11, "picture to depth map and back"),
    Task("sketch", "vision", 12, "picture to line drawing and back"),
    Task("normal", "vision", 13, "picture to map of surface normals and back"),
    Task("pose", "vision", 14, "picture to skeleton of a figure and back"),
    Task("segmap", "vision", 15, "picture to map of all segments and back"),
)

HELD_OUT: tuple[Task, ...] = (
    Task("superres", "vision", None, "enlarge the detail of a picture four times"),
    Task("contour", "vision", None, "draw the outlines of the objects only"),
    Task("inpaint", "region", None, "fill a grey region so that it fits the rest"),
    Task("add_detect", "region", None, "put a new object into the picture and draw a box around it"),
)

_BY_NAME = {known.name: known for known in TASKS + HELD_OUT}


class UnknownTaskError(ValueError):
    """Raised for a task name that is neither trained nor held out."""


def task(name: str) -> Task:
    """The task called `name`. Raises UnknownTaskError, which lists the known names."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    close = difflib.get_close_matches(name, _BY_NAME, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UnknownTaskError(f"want a task out of {', '.join(_BY_NAME)}; got {name!r}{hint}")
