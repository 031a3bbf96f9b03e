"""The change threshold of a learned task, chosen on examples (ours): how much of the image do the task's results keep?

A cutout keeps its objects, a contour keeps nothing. The network redraws what is kept, with errors at edges and small shapes; with
the right threshold the edit has the image's own pixels there (`core/change_threshold.edge_aware_weight`).
"""

from collections.abc import Sequence

import torch

from emuedit.core import compositing
from emuedit.data.image_io import MIN_CHANGE, Pixels
from emuedit.editor import preservation
from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.models import image_tensors
from emuedit.training.task_inversion import LearnedTask

CANDIDATES = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
"""Change thresholds to choose from, as sums over RGB in [0, 1]; Emu Edit's alpha is 0.03."""
MAX_LOSS = 0.005
"""Largest increase in the mean L1 distance, of values in [0, 1], of the pixels that the results change. Ours."""


def choose_change_threshold(
    sampler: EditSampler,
    task: str,
    learned: LearnedTask,
    before: Pixels,
    after: Pixels,
    instructions: Sequence[str],
    settings: EditSettings,
) -> float | None:
    """The candidate with which edits of N examples have the lowest mean L1 distance from their results.

    A candidate with which the pixels that the results change are farther from them by more than MAX_LOSS is not considered: an
    inaccurate edit is nearer to the result where it is suppressed. None if no candidate is better than the threshold of the
    settings, and if that is 0 (off). task: the name that the learned task will have; tasks that change the whole image, such as
    contour, ignore the threshold of the settings. before, after: images of the examples, uint8 [N, H, W, 3]. Each example is
    edited once, with the seeds of `EditSampler.sample`; the sampler is not changed.
    """
    if settings.change_threshold == 0:
        return None
    images, results = image_tensors.from_uint8(before), image_tensors.from_uint8(after)
    changes = ((results - images).abs() / 2 > MIN_CHANGE).any(1)  # [N, H, W]
    thresholds = (0.0, *CANDIDATES)
    distances, of_changed = torch.zeros(2, len(thresholds), dtype=torch.float64)
    sampler.add_task(task, learned.v, learned.adapter)
    try:
        seeds = range(settings.seed, settings.seed + len(images))
        for rows, edit in sampler.raw_edits(images, instructions, [task] * len(images), settings, seeds):
            for number, alpha in enumerate(thresholds):
                weight = preservation.edit_weight(
                    images[rows], edit, [task] * len(rows), settings, sampler.parts.factor, {task: alpha}
                )
                edited = compositing.blend(images[rows], edit.image, weight)
                distance = (edited - results[rows]).abs().mean(1) / 2  # [n, H, W]
                distances[number] += distance.sum()
                of_changed[number] += distance[changes[rows]].sum()
    finally:
        sampler.remove_task(task)
    loses = (of_changed - of_changed[0]) / changes.sum().clamp(min=1) > MAX_LOSS
    best = int(distances.masked_fill(loses, torch.inf).argmin())
    return thresholds[best] if best else None
