"""Edit images of any size: at the editor's training size, composited back into the original.

The working size is `settings.resolution`, or if that is 0 the sampler's `resolution_px`, i.e. the editor's `train.resolution`. An
image of at most resolution² pixels is edited directly, except very narrow ones (`working_size`). A larger image is scaled down
to the editor's grid, with about the same aspect ratio. The change is upsampled and composited into the original, whose other
pixels stay bit-identical. With `settings.crop`, the edit is repeated in a window around the change, at the original resolution if
the window is small enough, so that a small object in a large photo is edited sharply; if that changes nothing, the first edit is
used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import EllipsisType

import torch
from torch import Tensor

from emuedit.core import compositing
from emuedit.core.padding import padded_px
from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import NO_OPTIONS, Edited, ReportStep, SamplingOptions
from emuedit.editor.settings import EditSettings
from emuedit.tasks import changes_whole_image, edits_an_object, keeps_detail

Window = tuple[EllipsisType, slice, slice]
"""Index of rows and columns of an image."""
WINDOW_MARGIN = 0.5
"""Margin added to each side of the changed region's box for the second edit, as a fraction of the box's sides."""
MAX_PADDING = 2
"""Maximum number of padded pixels of an image that is edited directly, as a multiple of resolution_px^2. Ordinary images of at
most resolution_px^2 pixels stay below it. Ours."""


def working_size(height: int, width: int, resolution_px: int, grid_px: int) -> tuple[int, int]:
    """The size (h, w) in px at which an image is edited: unchanged for at most resolution_px^2 pixels, if padding to
    the grid, which the network needs, gives at most MAX_PADDING resolution_px^2 (or grid_px^2 if that is more).

    Else about resolution_px^2 pixels with the same aspect ratio; sides are positive multiples of grid_px. A side that would be
    smaller than grid_px becomes grid_px, and the other one resolution_px^2 / grid_px: the aspect ratio of such a strip changes.
    """
    max_padded = MAX_PADDING * max(resolution_px, grid_px) ** 2
    if height * width <= resolution_px**2 and padded_px(height, width, grid_px) <= max_padded:
        return height, width
    scale = math.sqrt(resolution_px**2 / (height * width))
    longest = max(grid_px, resolution_px**2 // grid_px**2 * grid_px)  # beside a side of grid_px
    h, w = (min(max(grid_px, round(side * scale / grid_px) * grid_px), longest) for side in (height, width))
    return h, w


def working_size_of(sampler: EditSampler, settings: EditSettings, height: int, width: int) -> tuple[int, int]:
    """The size (h, w) in px at which this editor edits an image with these settings, see `working_size`."""
    return working_size(height, width, settings.resolution or sampler.resolution_px, sampler.grid_px)


def edit_any_size(
    sampler: EditSampler,
    images: Tensor,
    instructions: Sequence[str],
    tasks: Sequence[str],
    settings: EditSettings,
    seeds: Sequence[int],
    options: SamplingOptions = NO_OPTIONS,
) -> Edited:
    """Like `EditSampler.sample`, for images [B, 3, H, W] of one size, which may exceed the working size.

    options: `latents` are those of the working size. Shifts are in px of the working size. With `settings.crop`, latents and
    shifts are those of the first edit, and its steps are reported; those of the second one count 0.

    Tasks that keep detail (`Task.keeps_detail`) apply the difference from the autoencoder's reconstruction of the smaller copy,
    unless `settings.against_reconstruction` is 0, so that its error is not added to the image.
    """
    height, width = images.shape[-2:]
    size = working_size_of(sampler, settings, height, width)
    if size == (height, width):
        return sampler.sample(images, instructions, tasks, settings, seeds, options)
    before = torch.cat([compositing.shrink(image[None], *size) for image in images.float().cpu()])
    first_options = replace(options, keep_reconstructions=any(map(keeps_detail, tasks)))
    small = sampler.sample(before, instructions, tasks, settings, seeds, first_options)
    results = []
    for row, image in enumerate(images.float().cpu()[:, None]):
        kept = keeps_detail(tasks[row])
        copy, edited = before[row : row + 1], small.images[row : row + 1]
        reconstruction = small.reconstructions[row : row + 1] if kept and small.reconstructions is not None else copy
        edit = (reconstruction if settings.against_reconstruction else copy, edited)
        window = None
        if settings.crop and edits_an_object(tasks[row]):
            window = _find_window(*edit, image.shape[-2:], settings.resolution or sampler.resolution_px)
        if window is not None:
            inside = image[window]
            second_options = replace(options.rows([row]), latents=None, measure_shifts=False, report=_uncounted(options.report))
            arguments = ([instructions[row]], [tasks[row]], settings.model_copy(update={"crop": 0}), [seeds[row]], second_options)
            second = edit_any_size(sampler, inside, *arguments).images
            if not torch.equal(second, inside):
                result = image.clone()
                weight = compositing.window_border(window[1:], image.shape[-2:], settings.border_px)
                result[window] = compositing.blend(inside, second, weight)
                results.append(result)
                continue
        is_full = changes_whole_image(tasks[row])
        results.append(compositing.enlarge_edit(image, *edit, kept, is_full, reconstruction=reconstruction))
    return Edited(torch.cat(results), small.shifts_px)


def _uncounted(report: ReportStep | None) -> ReportStep | None:
    """`report` with 0 samples per step."""
    return None if report is None else lambda _: report(0)


def _find_window(before: Tensor, after: Tensor, size: tuple[int, int], resolution_px: int) -> Window | None:
    """Index of a window around the region that the edit of the smaller copy changed; None if it is not smaller than the image.

    The window is the bounding box of the change plus WINDOW_MARGIN, with sides of at least resolution_px if the image allows.
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
    return (..., slices[0], slices[1])
