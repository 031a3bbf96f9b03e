"""The toy world's editor on a real photograph: what it draws there is wrong, but it draws nowhere else."""

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

from emuedit import Editor, EditSettings
from emuedit.core import compositing
from emuedit.core.soft_mask import dilate
from emuedit.editor import sampling
from emuedit.editor.sampling_options import Edited
from toyworld.training.__main__ import WEIGHTS

SETTINGS = EditSettings(steps=2, image_guidance_scale=1.0, guidance_scale=1.0)


@pytest.mark.slow
def test_pixels_outside_of_the_edit_of_the_smaller_copy_are_kept_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, sampler = load_sample_image("flower.jpg"), sampling.load(WEIGHTS / "base_editor")
    sample, edits = sampler.sample, list[tuple[Tensor, Tensor]]()

    def record(images: Tensor, *arguments: Any, **options: Any) -> Edited:
        result: Edited = sample(images, *arguments, **options)
        edits.append((images, result.images))
        return result

    monkeypatch.setattr(sampler, "sample", record)
    edited = Editor(sampler, None, SETTINGS).edit(photo, "remove the flower", "remove")
    ((before, after),) = edits
    mask = dilate(compositing.changed_pixels(before, after).float(), compositing.BORDER_PX)
    inside = F.interpolate(mask, photo.shape[:2], mode="bilinear")[0, 0].numpy() > 0
    assert 0.05 < inside.mean() < 0.8
    np.testing.assert_array_equal(edited[~inside], photo[~inside])
    assert (edited != photo).any(-1)[inside].mean() > 0.7
