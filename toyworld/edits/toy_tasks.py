"""The tasks that the toy world can pose: it has wordings, exact results and a judge for them.

A task of `emuedit/tasks.py` that is meant for photographs only is not listed here.
"""

from emuedit.tasks import UnknownTaskError

TRAINED = (
    "local", "remove", "add", "texture", "background", "global", "style", "text",
    "detect", "segment", "color", "depth", "sketch", "normal", "pose", "segmap",
)  # fmt: skip
"""Trained tasks, in the order of the task table."""
HELD_OUT = ("superres", "contour", "inpaint", "add_detect", "cutout")
"""Tasks that an editor learns by inversion only."""


def check_toy_task(task: str, tasks: tuple[str, ...] = TRAINED) -> None:
    """Raise UnknownTaskError unless the task is one of `tasks`."""
    if task not in tasks:
        raise UnknownTaskError(
            f"want a task of the toy world, {', '.join(tasks)}; got {task!r}; docs/architecture.md says how to add it"
        )
