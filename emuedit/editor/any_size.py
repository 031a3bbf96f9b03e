"""Pictures of any size: edited at the size at which the base model was trained, and composited back at their own.

That size is the sampler's `resolution_px`; `settings.resolution` replaces it, as for an editor that was trained at another
`train.resolution`. A picture with no more pixels than the square of that side is edited as it is. A larger one is scaled down,
its sides kept in proportion and on the editor's grid; what the edit changed is enlarged and laid over the picture, whose other
pixels stay as they are. With `settings.crop`, the edit is then made again in a window around what changed, at the picture's own
resolution where the window allows it, so that a small object in a large photo is edited sharply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from emuedit.core import compositing
from emuedit.editor.sampling import EditSampler, ReportStep
from emuedit.editor.settings import EditSettings
from emuedit.tasks import edits_an_object, find_task

WINDOW_MARGIN = 0.5
"""By which share of its sides the box of what changed is widened on each side for a second edit: room for context."""


def working_size(height: int, width: int, resolution_px: int, grid_px: int) -> tuple[int, int]:
    """The size (h, w) in px at which a picture is edited: its own if it has at most resolution_px^2 pixels.

    Else the largest one with sides in proportion, multiples of grid_px, and about that many pixels; a side is at least grid_px.
    """
    if height * width <= resolution_px**2:
        return height, width
    scale = math.sqrt(resolution_px**2 / (height * width))
    h, w = (max(grid_px, round(side * scale / grid_px) * grid_px) for side in (height, width))
    return h, w


def edit_any_size(
    sampler: EditSampler,
    images: Tensor,
    instructions: Sequence[str],
    tasks: Sequence[str],
    settings: EditSettings,
    seeds: Sequence[int],
    report: ReportStep | None = None,
) -> Tensor:
    """As `EditSampler.sample`, for images [B, 3, H, W] of one size, which may be larger than that one."""
    height, width = images.shape[-2:]
    resolution_px = settings.resolution or sampler.resolution_px
    size = working_size(height, width, resolution_px, sampler.grid_px)
    if size == (height, width):
        return sampler.sample(images, instructions, tasks, settings, seeds, report)
    before = torch.cat([compositing.shrink(image[None], *size) for image in images.float().cpu()])
    after = sampler.sample(before, instructions, tasks, settings, seeds, report)
    results = []
    for row, image in enumerate(images.float().cpu()[:, None]):
        task = find_task(tasks[row])
        edit = (before[row : row + 1], after[row : row + 1])
        window = _find_window(*edit, image.shape[-2:], resolution_px) if settings.crop and edits_an_object(tasks[row]) else None
        if window is None:
            results.append(compositing.enlarge_edit(image, *edit, keeps_detail=task is not None and task.keeps_detail))
            continue
        inside = image[window]
        arguments = ([instructions[row]], [tasks[row]], settings.model_copy(update={"crop": 0}), [seeds[row]], report)
        result = image.clone()
        result[window] = edit_any_size(sampler, inside, *arguments)
        results.append(result)
    return torch.cat(results)


def _find_window(before: Tensor, after: Tensor, size: tuple[int, int], resolution_px: int) -> tuple[object, ...] | None:
    """The index of a window of the picture around what an edit of its smaller copy changed; None where it is no smaller.

    The window is the box of what changed, widened by WINDOW_MARGIN, and at least resolution_px a side where the picture is.
    """
    changed = compositing.changed_pixels(before, after)[0, 0]
    if not changed.any():
        return None
    slices = []
    for dim, side in enumerate(size):
        places = changed.any(1 - dim).nonzero().flatten().tolist()
        scale = side / changed.shape[dim]
        first, last = places[0] * scale, (places[-1] + 1) * scale
        length = min(side, max((last - first) * (1 + 2 * WINDOW_MARGIN), resolution_px))
        start = int(min(max(0.0, (first + last) / 2 - length / 2), side - length))
        slices.append(slice(start, start + math.ceil(length)))
    if all(window.stop - window.start > 0.75 * side for window, side in zip(slices, size, strict=True)):
        return None
    return (..., *slices)
