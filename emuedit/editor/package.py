"""What is registered, served and called from the command line: one folder with an editor, its router and its task packs.

    models/editor  models/router  models/inversion/*.safetensors  models/defaults.json

The last two may be missing. A registered version is such a folder, so both are opened by `Bundle.load`.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MARK = "model_index.json"  # announces an editor folder
EDITOR, ROUTER, PACKS, DEFAULTS = "editor", "router", "inversion", "defaults.json"
CLOSE = 0.2  # two tasks whose probabilities differ by less are both told; ours


class BundleError(ValueError):
    """Raised for a folder without an editor, and for an edit that cannot be asked for."""


@dataclass(frozen=True)
class EditSettings:
    """How an edit is made. A registered model brings the values it was measured with; these are for folders without."""

    steps: int = 20
    """Denoising steps."""
    s_I: float = 1.5
    """Guidance by the picture (Emu Edit, arXiv 2311.10089)."""
    s_T: float = 5.0
    """Guidance by the instruction (the same)."""
    phi: float = 0.0
    """How far guidance is pulled back to the spread of what it guides, in [0, 1] (Lin et al., arXiv 2305.08891)."""
    hold: float = 1.0
    """How much the picture is held where the editor sees nothing to change, in [0, 1] (ours)."""
    alpha: float = 0.03
    """Pixels that change less are kept from the turn before (the same); 0 keeps none."""


@dataclass(frozen=True)
class Turn:
    """One instruction and what came of it."""

    instruction: str
    task: str
    probability: float | None
    """How sure the router is; None when the task was told."""
    second: str | None
    """The runner-up, when it is close."""
    pixels: npt.NDArray[np.uint8]
    """[H, W, 3]"""


class Bundle:
    """An editor that answers instructions."""

    def __init__(self, editor: Any, router: Any, knobs: EditSettings) -> None:
        self.editor, self.router, self.knobs = editor, router, knobs
        self.seconds = 0.0
        """Time of the last edit."""

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, knobs: EditSettings | None = None) -> "Bundle":
        """Open a bundle, or the editor folder inside one; `knobs`: if it brings none. BundleError says what was found."""
        from emuedit.editor import sampling as edit
        from emuedit.editor import task_pack
        from emuedit.editor import task_predictor as router
        from emuedit.runtime import Runtime

        root = home(folder)
        told = json.loads((root / DEFAULTS).read_text()) if (root / DEFAULTS).exists() else {}
        known = asdict(knobs or EditSettings())
        known |= {key: value for key, value in told.items() if key in known}
        chosen = device or Runtime.choose().device
        editor = edit.load(str(root / EDITOR), chosen)
        for pack in sorted((root / PACKS).glob("*.safetensors")):
            task_pack.add(editor, pack)
        guide = router.load(str(root / ROUTER), chosen) if (root / ROUTER).is_dir() else None
        return cls(editor, guide, EditSettings(**known))

    def edit(
        self,
        pixels: npt.NDArray[np.uint8],
        instructions: Sequence[str],
        tasks: Sequence[str | None] = (),
        seed: int = 0,
        knobs: EditSettings | None = None,
    ) -> list[Turn]:
        """Edit uint8 [H, W, 3] by one instruction after the other. A task that is not told is chosen by the router.

        Raises BundleError for an empty instruction, an unknown task, or a missing router.
        """
        from emuedit.editor import multi_turn
        from emuedit.models.image_tensors import from_uint8, to_uint8

        knobs = knobs or self.knobs
        told = list(tasks) or [None] * len(instructions)
        if not instructions or not all(text.strip() for text in instructions):
            raise BundleError(f"want an instruction, such as 'make the circle red'; got {list(instructions)!r}")
        if len(told) != len(instructions):
            raise BundleError(f"want a task for each of the {len(instructions)} instructions or none; got {told}")
        chosen = [self._task(text, task) for text, task in zip(instructions, told, strict=True)]
        began = time.monotonic()
        outputs = multi_turn.edit_in_turns(
            self.editor, from_uint8(pixels), list(instructions), [task for task, _, _ in chosen], seed, **asdict(knobs)
        )
        self.seconds = time.monotonic() - began
        return [Turn(text, *guess, to_uint8(image)[0]) for text, guess, image in zip(instructions, chosen, outputs, strict=True)]

    def _task(self, instruction: str, told: str | None) -> tuple[str, float | None, str | None]:
        known = tuple(self.editor.tasks)
        if told is not None:
            if told not in known:
                raise BundleError(f"want a task of {', '.join(known)}; got {told!r}")
            return told, None, None
        if self.router is None:
            raise BundleError("want a router to choose the task, got a folder without; name the task")
        (guess,) = self.router.predict([instruction])
        close = guess.probability - guess.second_probability < CLOSE
        return guess.task, float(guess.probability), guess.second if close else None


def home(folder: str | Path) -> Path:
    """The bundle that a folder is, or that an editor folder lies in."""
    path = Path(folder)
    if (path / EDITOR / MARK).is_file():
        return path
    if (path / MARK).is_file() and path.resolve().name == EDITOR:
        return path.resolve().parent
    found = sorted(one.name for one in path.iterdir())[:8] if path.is_dir() else "nothing"
    raise BundleError(f"want a folder with {EDITOR}/{MARK}, got {path} with {found}; run `uv run retrain`, or name a model")
