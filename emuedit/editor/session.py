"""A session of edits of one picture: undo, redo, branches, and a file that reproduces every picture.

session = EditSession(Editor.load("models"), Image.open("in.png"))
session.edit("make the circle red")
session.edit("remove the star")
session.undo()
session.save("session.json")
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from emuedit.data import contact_sheet
from emuedit.data.atomic_file import replacing
from emuedit.editor import touched_area
from emuedit.editor.package import Editor, Picture, Turn, to_rgb
from emuedit.editor.settings import EditSettings
from emuedit.editor.touched_area import TouchedArea

if TYPE_CHECKING:
    from emuedit.editor.sampling import ReportStep

Pixels = npt.NDArray[np.uint8]
FORMAT = 1
"""Version of the session file."""
ANIMATION_SUFFIXES = (".gif", ".webp", ".png")
_CAPTION_LINES = 4


class SessionError(ValueError):
    """Raised for a step that cannot be made, and for a session file that does not fit."""


@dataclass(frozen=True)
class Step:
    """One turn of a session: what was asked for, how it was done, and the picture afterwards."""

    turn: Turn
    settings: EditSettings
    """With the seed of this turn."""
    touched: TouchedArea
    """What differs from the picture before the turn."""

    def record(self) -> dict[str, Any]:
        """What the turn can be made again from."""
        return {"instruction": self.turn.instruction, "task": self.turn.choice.task, "settings": self.settings.model_dump()}


class EditSession:
    """The history of the edits of one picture. Every turn edits the result of the turn before."""

    def __init__(self, editor: Editor, image: Picture) -> None:
        """Raises PackageError for what is no picture."""
        self.editor = editor
        self.original: Pixels = to_rgb(image)
        self._steps: list[Step] = []
        self._undone: list[Step] = []

    @property
    def steps(self) -> tuple[Step, ...]:
        """The turns that were made and not undone."""
        return tuple(self._steps)

    @property
    def pixels(self) -> Pixels:
        """The picture as it is now, uint8 [H, W, 3]."""
        return self._steps[-1].turn.pixels if self._steps else self.original

    def edit(
        self, instruction: str, task: str | None = None, settings: EditSettings | None = None, report: ReportStep | None = None
    ) -> Step:
        """Make one more turn. What was undone before it cannot be redone afterwards.

        task: None leaves the choice to the task predictor. settings: the editor's by default, whose seed is increased by the
        number of the turn. Raises what `Editor.edit_turns` raises; the session is then as it was.
        """
        if settings is None:
            settings = self.editor.settings.with_changes({"seed": self.editor.settings.seed + len(self._steps)})
        return self.extend([instruction], [task] if task else None, settings, report)[0]

    def extend(
        self,
        instructions: Sequence[str],
        tasks: Sequence[str | None] | None,
        settings: EditSettings,
        report: ReportStep | None = None,
    ) -> list[Step]:
        """Make several turns, the first with the seed of `settings`, each further one with one more; all or none."""
        before, steps = self.pixels, []
        for number, turn in enumerate(self.editor.edit_turns(before, instructions, tasks, settings, report)):
            used = settings.with_changes({"seed": settings.seed + number})
            steps.append(Step(turn, used, touched_area.measure(before, turn.pixels)))
            before = turn.pixels
        self._steps += steps
        self._undone.clear()
        return steps

    def undo(self) -> Pixels:
        """Take the last turn back, and return the picture. Raises SessionError where there is none."""
        if not self._steps:
            raise SessionError("want a turn to undo, got a session without turns")
        self._undone.append(self._steps.pop())
        return self.pixels

    def redo(self) -> Pixels:
        """Make the turn again that was undone last, without computing it. Raises SessionError where there is none."""
        if not self._undone:
            raise SessionError("want a turn that was undone, got none; a new edit after an undo forgets what was undone")
        self._steps.append(self._undone.pop())
        return self.pixels

    def branch(self) -> EditSession:
        """A session that has the same turns so far, and goes its own way."""
        other = copy.copy(self)
        other._steps, other._undone = list(self._steps), []
        return other

    def save(self, file: str | Path) -> None:
        """Write what every picture can be made again from: instructions, tasks, settings, and which picture and editor."""
        content = {
            "format": FORMAT,
            "picture": hash_pixels(self.original),
            "editor": self.editor.sampler.weights,
            "turns": [step.record() for step in self._steps],
        }
        with replacing(Path(file)) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def replay(
        cls, editor: Editor, image: Picture, file: str | Path, any_picture: bool = False, report: ReportStep | None = None
    ) -> EditSession:
        """Make the turns of a saved session again; on the same machine and device the pictures are the same bit for bit.

        any_picture: whether the turns may be applied to another picture. Raises SessionError for a file that is no session, for
        another picture, and for another editor, whose pictures would be others.
        """
        content = _read(Path(file))
        session = cls(editor, image)
        if content["editor"] != editor.sampler.weights:
            raise SessionError(
                f"want the editor {content['editor']} that {file} was made with, got {editor.sampler.weights}; name that one"
            )
        if not any_picture and content["picture"] != hash_pixels(session.original):
            raise SessionError(f"want the picture that {file} begins with, got another one; allow it with --any-picture")
        for record in content["turns"]:
            settings = EditSettings().with_changes(record["settings"])
            session.edit(record["instruction"], record["task"], settings, report)
        return session

    def contact_sheet(self) -> Image.Image:
        """The pictures of all turns side by side, each with its instruction."""
        pictures = np.stack([self.original, *(step.turn.pixels for step in self._steps)])
        captions = ["", *(step.turn.instruction for step in self._steps)]
        return contact_sheet.picture_grid([("", pictures)], captions, _CAPTION_LINES)

    def save_animation(self, file: str | Path, seconds: float = 1.0) -> None:
        """Write the turns as an animated GIF, WebP or PNG, by the suffix, that shows each picture for so many seconds.

        Raises SessionError for another suffix.
        """
        if Path(file).suffix.lower() not in ANIMATION_SUFFIXES:
            raise SessionError(f"want an animation that ends in {', '.join(ANIMATION_SUFFIXES)}; got {file}")
        frames = [Image.fromarray(pixels) for pixels in (self.original, *(step.turn.pixels for step in self._steps))]
        with replacing(Path(file)) as partial:
            frames[0].save(partial, save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0)


def hash_pixels(pixels: Pixels) -> str:
    """16 hex digits (blake2b) of a picture's size and pixels."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SessionError(f"want a session file, got {file}: {error}") from error
    keys = {"format", "picture", "editor", "turns"}
    if not isinstance(content, dict) or not keys <= set(content) or content["format"] != FORMAT:
        raise SessionError(f"want a session file of format {FORMAT} with {', '.join(sorted(keys))}, got another one in {file}")
    turns, keys = content["turns"], {"instruction", "task", "settings"}
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and keys <= set(turn) for turn in turns):
        raise SessionError(f"want a list of turns with {', '.join(sorted(keys))} each; got others in {file}")
    return content
