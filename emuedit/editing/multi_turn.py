"""Apply several edits in sequence; pixels that a turn does not change stay bit-identical."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from emuedit.editor.any_size import edit_any_size
from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import NO_OPTIONS, Edited, SamplingOptions
from emuedit.editor.settings import EditSettings
from emuedit.models import image_tensors


def edit_turns(
    sampler: EditSampler,
    image: Tensor,
    instructions: Sequence[str],
    tasks: Sequence[str],
    settings: EditSettings,
    options: SamplingOptions = NO_OPTIONS,
) -> Iterator[Edited]:
    """Image [1, 3, H, W] in [-1, 1] -> the image after each turn and its shift, turn by turn. Turn i uses seed + i.

    Results are rounded to bytes, so a turn gives the same result in memory as from a file. `EditSampler.sample` keeps pixels that
    change less than `change_threshold` (Emu Edit, arXiv 2311.10089). Shifts: see `edit_any_size`.

    options: for every turn; the shifts are measured in any case. Each result is yielded when its turn ends, so that the images of
    all turns, 12 bytes per pixel, need not be in memory together. Raises, with the first turn, ValueError unless there is one
    image and one task per instruction, UnknownTaskError for an unknown task.
    """
    if len(image) != 1 or len(instructions) != len(tasks):
        raise ValueError(
            f"want one image and a task for each instruction, got {len(image)} images, {len(instructions)} instructions, "
            f"{len(tasks)} tasks"
        )
    options = replace(options, measure_shifts=True)
    before = image.float().cpu()
    for turn, (instruction, task) in enumerate(zip(instructions, tasks, strict=True)):
        seeds = [settings.seed + turn]
        edited = edit_any_size(sampler, before, [instruction], [task], settings, seeds, options)
        edited = replace(edited, images=image_tensors.from_uint8(image_tensors.to_uint8(edited.images)))
        yield edited
        before = edited.images
