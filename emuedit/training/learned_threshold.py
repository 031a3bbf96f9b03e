"""The change threshold of a learned task, chosen on examples (ours): how much of the image do the task's results keep?

A cutout keeps its objects, a contour keeps nothing. The network redraws what is kept, with errors at edges and small shapes; with
the right threshold the edit has the image's own pixels there (`core/change_threshold.edge_aware_weight`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from emuedit.core import compositing
from emuedit.data.image_io import Pixels
from emuedit.editor import preservation
from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.models import image_tensors
from emuedit.training.task_inversion import LearnedTask

CANDIDATES = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
"""Change thresholds to choose from, as sums over RGB in [0, 1]; Emu Edit's alpha is 0.03."""
MIN_SHARE = 0.9
"""Minimum share of the edit that is made with a threshold, as a fraction of the share without one. Ours."""
NOISE = 0.03
"""Largest difference of an unchanged pixel, in the channel that differs most, in [0, 1]: noise, such as that of JPEG. Ours."""


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

    A candidate with which less of the edit is made is not considered (`MIN_SHARE`): an inaccurate or noisy edit is nearer to the
    result where it is suppressed. The share made is sum((edited - image) (result - image)) / sum((result - image)^2) over the
    pixels that the results change (`_differs`). None if no candidate is better than the threshold of the
    settings, and if that is 0 (off). task: the name that the learned task will have; tasks that change the whole image, such as
    contour, ignore the threshold of the settings. before, after: images of the examples, uint8 [N, H, W, 3]. Each example is
    edited once, with the seeds of `EditSampler.sample`; the sampler is not changed.
    """
    if settings.change_threshold == 0:
        return None
    images, results = image_tensors.from_uint8(before), image_tensors.from_uint8(after)
    to_do = (results - images) * _differs(images, results)
    thresholds = (0.0, *CANDIDATES)
    distances, done = torch.zeros(2, len(thresholds), dtype=torch.float64)
    sampler.add_task(task, learned.v, learned.adapter)
    try:
        seeds = range(settings.seed, settings.seed + len(images))
        for rows, edit in sampler.raw_edits(images, instructions, [task] * len(images), settings, seeds):
            for number, alpha in enumerate(thresholds):
                weight = preservation.edit_weight(
                    images[rows], edit, [task] * len(rows), settings, sampler.parts.factor, {task: alpha}
                )
                edited = compositing.blend(images[rows], edit.image, weight)
                distances[number] += (edited - results[rows]).abs().sum()
                done[number] += ((edited - images[rows]) * to_do[rows]).sum()
    finally:
        sampler.remove_task(task)
    loses = done < MIN_SHARE * done[0].clamp(max=float(to_do.square().sum()))
    best = int(distances.masked_fill(loses, torch.inf).argmin())
    return thresholds[best] if best else None


def _differs(images: Tensor, results: Tensor) -> Tensor:
    """Where results differ from their images by more than NOISE, [N, 1, H, W].

    Everywhere in an image in which these pixels have less than half of the squared difference, as in a mild change of the whole
    image.
    """
    difference = (results - images) / 2
    differs = (difference.abs() > NOISE).any(1, keepdim=True)
    squares = difference.square()
    is_mild = (squares * differs).sum((1, 2, 3), keepdim=True) < squares.sum((1, 2, 3), keepdim=True) / 2
    return differs | is_mild
