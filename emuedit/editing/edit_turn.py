"""The result of an instruction: the image, the task and how it was chosen, and the area that was changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emuedit.data.image_io import Pixels
from emuedit.editor import changed_area
from emuedit.editor.changed_area import ChangedArea


@dataclass(frozen=True)
class TaskChoice:
    """The task of an instruction, and how it was chosen."""

    task: str
    probability: float | None
    """Probability by the task predictor, in [0, 1]; None if the task was given."""
    second: str | None = None
    """The second possible task of an ambiguous instruction."""
    second_probability: float | None = None
    """Its probability, in [0, 1]; None without a second task."""


@dataclass(frozen=True)
class Turn:
    """One instruction and its result."""

    instruction: str
    choice: TaskChoice
    pixels: Pixels
    """The image after the turn, [H, W, 3]."""
    before: Pixels
    """The image before the turn, [H, W, 3]."""
    changed: ChangedArea
    """Share and bounding box of the pixels that the turn changed; all others are bit-identical."""

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """The pixels that the turn changed, bool [H, W]."""
        return changed_area.changed_mask(self.before, self.pixels)
