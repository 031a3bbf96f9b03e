"""Which pixels an edit preserves, and whether the edited image is shifted against its input.

Shapes: images are float32 [B, 3, H, W] in [-1, 1] on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from emuedit.core import change_threshold, compositing
from emuedit.core.registration import estimate_shift
from emuedit.editor.sampling_options import RawEdit
from emuedit.editor.settings import EditSettings
from emuedit.tasks import changes_whole_image, edits_an_object, keeps_objects

MIN_PRESERVED = 0.25
"""Minimum share of preserved pixels from which a shift is estimated. Ours."""
REGISTRATION_PX = 256
"""Larger images are averaged to at most this size for the estimate of a shift, which takes 0.2 s there. Ours."""


def edit_weight(
    before: Tensor,
    edit: RawEdit,
    tasks: Sequence[str],
    settings: EditSettings,
    factor: int,
    learned: Mapping[str, float] = MappingProxyType({}),
) -> Tensor:
    """Weight [B, 1, H, W] of the edited image: 0 in preserved pixels, 1 inside the changed region and in whole-image tasks.

    Change is measured from `edit.reconstruction`, or from `before` without one or with `against_reconstruction` 0. factor:
    side in px of a latent cell. learned: task -> its change threshold, which applies if it is above that of the settings
    and that one is not 0.
    """
    height, width = before.shape[-2:]
    changed = torch.ones(len(before), 1, height, width, dtype=torch.bool)
    reference = before if edit.reconstruction is None or not settings.against_reconstruction else edit.reconstruction
    if settings.change_threshold > 0:
        is_over = change_threshold.exceeds_threshold(reference, edit.image, settings.change_threshold)
        changed = is_over | _flags(changes_whole_image(task) for task in tasks)
    if settings.composite and edit.change_probability is not None:
        cells = compositing.changed_cells(edit.change_probability, factor, height, width)
        changed = changed & (cells | _flags(not edits_an_object(task) for task in tasks))
    weight = compositing.soft_border(changed, settings.border_px)
    for row, task in enumerate(tasks):
        alpha = learned.get(task, settings.background_threshold if keeps_objects(task) else 0.0)
        if alpha > settings.change_threshold > 0:
            pictures = (before[row], reference[row], edit.image[row])
            weight[row] = change_threshold.edge_aware_weight(*pictures, alpha, radius_px=max(1, factor // 2))
    return weight


def measure_shifts(
    before: Tensor, edited: Tensor, weight: Tensor, tasks: Sequence[str], has_change_mask: bool = True
) -> list[float | None]:
    """Length in px of the shift of each edited image against its input, estimated on the preserved pixels, where weight is 0.

    None where it is undefined: less than MIN_PRESERVED of the image is preserved, `estimate_shift` finds none, or the preserved
    pixels do not come from a predicted change mask (other tasks than those that edit an object, or `has_change_mask` False): a
    shifted edge exceeds the change threshold, so thresholding alone preserves only pixels that show no shift.
    """
    scale = math.ceil(max(before.shape[-2:]) / REGISTRATION_PX)
    shifts: list[float | None] = []
    for source, target, preserved, task in zip(before, edited, weight[:, 0] == 0, tasks, strict=True):
        if not has_change_mask or not edits_an_object(task) or float(preserved.float().mean()) < MIN_PRESERVED:
            shifts.append(None)
            continue
        small_source, small_target = (F.avg_pool2d(image, scale, ceil_mode=True) for image in (source, target))
        used = -F.max_pool2d(-preserved.float()[None], scale, ceil_mode=True)[0]  # blocks without an edited pixel
        d = estimate_shift(small_source, small_target, used)
        shifts.append(None if d is None else scale * math.hypot(*d))
    return shifts


def _flags(values: Iterable[bool]) -> Tensor:  # [B, 1, 1, 1]
    return torch.tensor(list(values)).view(-1, 1, 1, 1)
