"""Many edits, one after the other, with what did not change kept bit for bit from turn to turn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from emuedit.core import change_threshold
from emuedit.editor.sampling import Editor


def edit_in_turns(
    editor: Editor,
    image: Tensor,
    instructions: Sequence[str],
    tasks: Sequence[str],
    seed: int,
    *,
    steps: int,
    s_I: float,
    s_T: float,
    phi: float = 0.0,
    hold: float = 1.0,
    alpha: float = change_threshold.ALPHA,
    sigma_px: float = change_threshold.SIGMA_PX,
) -> list[Tensor]:
    """Image [1, 3, H, W] in [-1, 1] -> the picture after every turn. Turn i is drawn from seed + i.

    Per-pixel thresholding of Emu Edit (arXiv 2311.10089): where a turn changed less than alpha, the old pixel stays; alpha 0
    keeps none. Raises ValueError unless there is one task an instruction, UnknownTaskError for an unknown one.
    """
    if len(image) != 1 or len(instructions) != len(tasks):
        raise ValueError(
            f"want one picture and a task for each instruction, got {len(image)} pictures, {len(instructions)} instructions, "
            f"{len(tasks)} tasks"
        )
    pictures: list[Tensor] = []
    before = image.float().cpu()
    for turn, (instruction, task) in enumerate(zip(instructions, tasks, strict=True)):
        after = editor.edit(before, [instruction], [task], [seed + turn], steps=steps, s_I=s_I, s_T=s_T, phi=phi, hold=hold)
        before = change_threshold.unchanged_kept(before, after, alpha, sigma_px) if alpha > 0 else after
        pictures.append(before)
    return pictures
