"""Editing session of one image: undo, redo, branches, and a file that reproduces every image.

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
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from emuedit.data import contact_sheet
from emuedit.data.atomic_file import replacing
from emuedit.data.image_io import Pixels
from emuedit.editing.api import Editor
from emuedit.editing.edit_turn import Turn
from emuedit.editing.editor_inputs import Picture, check_instructions, to_rgb
from emuedit.editor.settings import EditSettings

if TYPE_CHECKING:
    from emuedit.editor.sampling_options import ReportStep

FORMAT = 1
"""Version of the session file."""
ANIMATION_SUFFIXES = (".gif", ".webp", ".png")
_CAPTION_LINES = 4


class NumberFormatWarning(UserWarning):
    """Warning for a session that is replayed in another number format: its images may differ slightly."""


class SessionError(ValueError):
    """Raised for an impossible undo or redo and for an invalid or incompatible session file."""


@dataclass(frozen=True)
class SessionTurn(Turn):
    """One turn of a session, with the settings that reproduce it."""

    settings: EditSettings
    """Settings with the seed of this turn."""
    pack: str | None
    """Hash of the pack of its task, with which the turn was made; None: no pack added the task."""

    def record(self) -> dict[str, Any]:
        """The data that reproduces the turn."""
        return {"instruction": self.instruction, "task": self.choice.task, "settings": self.settings.model_dump()}


class EditSession:
    """The edit history of one image. Each turn edits the result of the previous turn. Its images are read-only: copy them to
    change them."""

    def __init__(self, editor: Editor, image: Picture) -> None:
        """Raises EditError for an invalid image."""
        self.editor = editor
        pixels = to_rgb(image)
        is_shared = isinstance(image, np.ndarray)  # the caller may change its array later
        self.original: Pixels = pixels.copy() if is_shared else pixels
        self.original.setflags(write=False)
        self._turns: list[SessionTurn] = []
        self._undone: list[SessionTurn] = []

    @property
    def turns(self) -> tuple[SessionTurn, ...]:
        """The turns, without undone ones."""
        return tuple(self._turns)

    @property
    def pixels(self) -> Pixels:
        """The current image, uint8 [H, W, 3]."""
        return self._turns[-1].pixels if self._turns else self.original

    def edit(
        self, instruction: str, task: str | None = None, settings: EditSettings | None = None, report: ReportStep | None = None
    ) -> SessionTurn:
        """Add a turn. Undone turns can then no longer be redone.

        task: None: chosen by the task predictor. settings: default: the editor's, with the turn's number added to the seed.
        Raises what `Editor.edit_turns` raises; the session is then unchanged.
        """
        if settings is None:
            settings = self.editor.settings.with_changes({"seed": self.editor.settings.seed + len(self._turns)})
        return self.extend([instruction], [task] if task else None, settings, report)[0]

    def extend(
        self,
        instructions: Sequence[str],
        tasks: Sequence[str | None] | None,
        settings: EditSettings,
        report: ReportStep | None = None,
    ) -> list[SessionTurn]:
        """Add several turns, all or none. The first uses the seed of `settings`; the seed increases by one per turn.

        Raises SettingsError, before the first turn, if the seed of the last would be out of bounds.
        """
        check_instructions(instructions)
        used = [settings.with_changes({"seed": settings.seed + number}) for number in range(len(instructions))]
        with self.editor.sampler.lock:  # another thread may replace a task
            first, *others = self.editor.edit_turns(self.pixels, instructions, tasks, settings, report)
            results = [replace(first, before=self.pixels), *others]  # without the copy that `edit_turns` makes
            turns = [
                SessionTurn(**vars(result), settings=chosen, pack=self._pack(result.choice.task))
                for result, chosen in zip(results, used, strict=True)
            ]
        for turn in turns:
            turn.pixels.setflags(write=False)
        self._turns += turns
        self._undone.clear()
        return turns

    def undo(self) -> Pixels:
        """Undo the last turn and return the image. Raises SessionError if there is none."""
        if not self._turns:
            raise SessionError("want a turn to undo, got a session without turns")
        self._undone.append(self._turns.pop())
        return self.pixels

    def redo(self) -> Pixels:
        """Restore the turn that was undone last, without recomputing it. Raises SessionError if there is none."""
        if not self._undone:
            raise SessionError("want an undone turn to redo, got none; a new edit discards undone turns")
        self._turns.append(self._undone.pop())
        return self.pixels

    def branch(self) -> EditSession:
        """An independent copy of the session."""
        other = copy.copy(self)
        other._turns, other._undone = list(self._turns), []
        return other

    def save(self, file: str | Path) -> None:
        """Write what reproduces every image: instructions, tasks, settings, number format, and hashes of image, editor and packs.

        Raises SessionError if two turns of one task were made with different packs: no editor has both.
        """
        content = {
            "format": FORMAT,
            "picture": hash_pixels(self.original),
            "editor": self.editor.sampler.fingerprint,
            "dtype": self._dtype,
            "packs": self._packs(),
            "turns": [turn.record() for turn in self._turns],
        }
        with replacing(Path(file)) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def replay(
        cls, editor: Editor, image: Picture, file: str | Path, any_image: bool = False, report: ReportStep | None = None
    ) -> EditSession:
        """Repeat the turns of a saved session; on the same machine and device the images are bit-identical.

        any_image: whether another input image is allowed. Raises SessionError for an invalid session file, for another input
        image, and for another editor or task pack, whose results would differ. Warns (NumberFormatWarning) if the editor is in
        another number format. A file without one, of an earlier version, does not know the packs' change thresholds either.
        """
        content = _read(Path(file))
        session = cls(editor, image)
        if content["editor"] != editor.sampler.fingerprint:
            raise SessionError(
                f"want the editor {content['editor']} that {file} was made with, got {editor.sampler.fingerprint}; load that one"
            )
        if not any_image and content["picture"] != hash_pixels(session.original):
            raise SessionError(f"want the input image of {file}, got another one; allow it with --any-image")
        is_complete = "dtype" in content
        if is_complete and content["dtype"] != session._dtype:
            message = (
                f"want the number format {content['dtype']} that {file} was made with, got {session._dtype}, in which the images "
                f"may differ; load the editor with dtype={content['dtype']!r}"
            )
            warnings.warn(message, NumberFormatWarning, stacklevel=2)
        for task, fingerprint in content.get("packs", {}).items():
            if session._pack(task, is_complete) != fingerprint:
                raise SessionError(
                    f"want the pack of the task {task!r} that {file} was made with, got another or none; add that one"
                )
        for record in content["turns"]:
            settings = EditSettings().with_changes(record["settings"])
            session.edit(record["instruction"], record["task"], settings, report)
        return session

    @property
    def _dtype(self) -> str:
        """Number format of the editor, such as bfloat16."""
        return str(self.editor.sampler.dtype).removeprefix("torch.")

    def _pack(self, task: str, with_threshold: bool = True) -> str | None:
        """Hash of the pack that the editor has of a task; None: no pack added it. with_threshold: with its change threshold."""
        from emuedit.editor import task_pack

        sampler = self.editor.sampler
        with sampler.lock:
            if task not in sampler.inverted_tasks:
                return None
            threshold = sampler.change_thresholds.get(task) if with_threshold else None
            return task_pack.fingerprint(sampler.net.table.rows([task])[0], sampler.adapters.get(task), threshold)

    def _packs(self) -> dict[str, str]:
        """Task -> hash of the pack with which its turns were made, for tasks that a pack added."""
        packs: dict[str, str | None] = {}
        for turn in self._turns:
            task = turn.choice.task
            if packs.setdefault(task, turn.pack) != turn.pack:
                raise SessionError(
                    f"want one pack per task in a session file, got turns of the task {task!r} with two; undo those of one pack"
                )
        return {task: pack for task, pack in sorted(packs.items()) if pack is not None}

    def contact_sheet(self) -> Image.Image:
        """The images of all turns side by side, each with its instruction."""
        pictures = np.stack([self.original, *(turn.pixels for turn in self._turns)])
        captions = ["", *(turn.instruction for turn in self._turns)]
        return contact_sheet.picture_grid([("", pictures)], captions, _CAPTION_LINES)

    def save_animation(self, file: str | Path, seconds: float = 1.0) -> None:
        """Write the turns as an animated GIF, WebP or PNG, by the suffix, `seconds` per image.

        Raises SessionError for another suffix.
        """
        if Path(file).suffix.lower() not in ANIMATION_SUFFIXES:
            raise SessionError(f"want an animation that ends in {', '.join(ANIMATION_SUFFIXES)}; got {file}")
        frames = [Image.fromarray(pixels) for pixels in (self.original, *(turn.pixels for turn in self._turns))]
        with replacing(Path(file)) as partial:
            frames[0].save(partial, save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0)


def hash_pixels(pixels: Pixels) -> str:
    """16 hex digits (blake2b) of an image's size and pixels."""
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
        raise SessionError(f"want a session file of format {FORMAT} with {', '.join(sorted(keys))}, got others in {file}")
    turns, keys = content["turns"], {"instruction", "task", "settings"}
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and keys <= set(turn) for turn in turns):
        raise SessionError(f"want a list of turns with {', '.join(sorted(keys))} each; got others in {file}")
    for turn in turns:
        texts = (turn["instruction"], turn["task"])
        if not all(isinstance(text, str) for text in texts) or not isinstance(turn["settings"], dict):
            raise SessionError(f"want a turn with two texts and a mapping of settings, got {turn} in {file}")
        if missing := sorted(EditSettings.model_fields.keys() - turn["settings"].keys()):
            raise SessionError(
                f"want all settings in each turn, got none of {', '.join(missing)} in {file}, which an earlier version made "
                "without them; add the values to use"
            )
    return content
