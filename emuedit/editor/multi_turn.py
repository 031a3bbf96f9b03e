"""Several edits one after the other; each turn keeps the pixels that it did not change, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from emuedit.editor.any_size import edit_any_size
from emuedit.editor.sampling import EditSampler, ReportStep
from emuedit.editor.settings import EditSettings
from emuedit.models import image_tensors


def edit_turns(
    sampler: EditSampler,
    image: Tensor,
    instructions: Sequence[str],
    tasks: Sequence[str],
    settings: EditSettings,
    report: ReportStep | None = None,
) -> list[Tensor]:
    """Image [1, 3, H, W] in [-1, 1] -> the picture after every turn. Turn i starts from the noise of seed + i.

    Pictures are rounded to bytes, so that a turn makes the same whether it edits them here or from a file.

    Per-pixel thresholding of Emu Edit (arXiv 2311.10089): where a turn changed less than `change_threshold`, the old pixel
    stays. Raises ValueError unless there is one picture and one task per instruction, UnknownTaskError for an unknown task.
    """
    if len(image) != 1 or len(instructions) != len(tasks):
        raise ValueError(
            f"want one picture and a task for each instruction, got {len(image)} pictures, {len(instructions)} instructions, "
            f"{len(tasks)} tasks"
        )
    pictures: list[Tensor] = []
    before = image.float().cpu()
    for turn, (instruction, task) in enumerate(zip(instructions, tasks, strict=True)):
        after = edit_any_size(sampler, before, [instruction], [task], settings, [settings.seed + turn], report)
        before = image_tensors.from_uint8(image_tensors.to_uint8(after))
        pictures.append(before)
    return pictures
