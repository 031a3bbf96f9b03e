"""Shifts of an edited image, measured on the pixels that an edit preserves, and reported with the changed area."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from emuedit import Editor, EditSettings
from emuedit.editor import changed_area, preservation
from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import RawEdit, SamplingOptions
from emuedit.editor.unet import Prediction
from emuedit.models.text_to_image import TextCondition

SETTINGS = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0, against_reconstruction=0, resolution=64)


def smooth(size: int, seed: int = 0) -> Tensor:
    """1 x 3 x size x size, smooth over 4 px, in [-1, 1]."""
    noise = torch.rand(1, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return F.interpolate(noise, (size, size), mode="bicubic").clamp(-1, 1)


def move(image: Tensor, px: float) -> Tensor:
    """Shift an image to the right by 0 to 1 px, linearly."""
    return torch.lerp(image, image.roll(1, -1), px)


class CentreChanges(torch.nn.Module):
    """Predicts a change of the cells in the middle of the picture."""

    def __init__(self, sampler: EditSampler) -> None:
        super().__init__()
        self.table = sampler.net.table

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor) -> Prediction:
        logits = torch.full_like(z_t[:, :1], -9.0)
        size = logits.shape[-1]
        logits[..., 3 * size // 8 : 5 * size // 8, 3 * size // 8 : 5 * size // 8] = 9.0
        return Prediction(torch.zeros_like(z_t), logits)


@pytest.mark.parametrize("px", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("size", [64, 300])
def test_a_shift_is_measured_outside_the_edit(px: float, size: int) -> None:
    before = smooth(size).repeat(4, 1, 1, 1)
    edited = move(before, px)
    third = size // 3
    edited[..., third : 2 * third, third : 2 * third] = -before[..., third : 2 * third, third : 2 * third]
    weight = torch.zeros(4, 1, size, size)
    weight[..., third : 2 * third, third : 2 * third] = 1
    weight[3] = 1
    shifts = preservation.measure_shifts(before, edited, weight, ["remove", "local", "background", "remove"])
    assert shifts[:2] == pytest.approx([px] * 2, abs=0.1)
    assert shifts[2:] == [None, None], "undefined where thresholding chose the preserved pixels, and where there are none"
    assert preservation.measure_shifts(before, edited, weight, ["remove"] * 4, has_change_mask=False) == [None] * 4


@pytest.mark.slow
@pytest.mark.parametrize(("px", "text"), [(0.0, ""), (1.0, "; the edit is shifted by 1.0 px")])
def test_a_turn_says_that_its_edit_is_shifted(
    px: float, text: str, make_sampler: Callable[..., EditSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels outside the edit hide it, as they are copied from the input."""
    sampler, picture = make_sampler(), ((smooth(64)[0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    monkeypatch.setattr(sampler, "net", CentreChanges(sampler))
    before = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
    monkeypatch.setattr(sampler.parts, "decode", lambda z: move(before, px).where(torch.arange(64) != 31, -before))
    (turn,) = Editor(sampler, None, SETTINGS).edit_turns(picture, ["remove it"], ["remove"])
    assert turn.changed.shift_px == pytest.approx(px, abs=0.1)
    assert 0 < turn.changed.share < 0.1
    assert str(turn.changed).partition("; ")[2] == text.removeprefix("; ")
    (other,) = Editor(sampler, None, SETTINGS).edit_turns(picture, ["a night"], ["background"])
    assert other.changed.shift_px is None


def test_the_text_of_a_changed_area_names_a_shift_above_the_bound() -> None:
    before, after = np.zeros((2, 8, 8, 3), np.uint8)
    after = before.copy()
    after[2:4, 2:4] = 9
    for shift_px, is_named in ((None, False), (0.5, False), (0.6, True)):
        assert ("shifted" in str(changed_area.measure(before, after, shift_px))) is is_named
    assert str(changed_area.measure(before, before, 0.9)) == "no pixel changed"


@pytest.mark.slow
def test_shifts_of_a_batch_are_in_its_order(make_sampler: Callable[..., EditSampler], monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make_sampler()
    monkeypatch.setattr(sampler, "net", CentreChanges(sampler))
    monkeypatch.setattr(sampler, "max_pixels_per_batch", 2 * 64**2)
    images, batches = torch.cat([smooth(64, seed) for seed in range(3)]), iter([slice(0, 2), slice(2, 3)])
    offsets = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)

    def decode(z: Tensor) -> Tensor:
        rows = next(batches)
        return torch.lerp(images[rows], images[rows].roll(1, -1), offsets[rows])

    monkeypatch.setattr(sampler.parts, "decode", decode)
    arguments = (images, ["a"] * 3, ["remove"] * 3, SETTINGS, [0, 1, 2])
    edited = sampler.sample(*arguments, options=SamplingOptions(measure_shifts=True))
    assert edited.shifts_px == pytest.approx([0.0, 0.5, 1.0], abs=0.1)


@pytest.mark.parametrize(("task", "threshold", "keeps"), [
    ("background", 0.15, True), ("background", 0.0, False), ("background", 3.0, True), ("style", 0.15, False),
    ("night", 0.15, False),
])  # fmt: skip
def test_objects_that_a_new_background_redraws_keep_their_pixels(task: str, threshold: float, keeps: bool) -> None:
    before = torch.full((1, 3, 32, 32), -0.5)
    before[..., 10:22, 10:22] = torch.tensor([0.6, -0.8, -0.8]).view(1, 3, 1, 1)
    edited = before.clone()
    edited[..., 10:22, 10:22] += 0.04  # d = 0.06
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[10:22, 10:22] = False
    edited[..., outside] = 0.4
    settings = EditSettings(background_threshold=threshold, border_px=0)
    weight = preservation.edit_weight(before, RawEdit(edited, None, None), [task], settings, factor=4)
    assert bool((weight[..., 12:20, 12:20] == 0).all()) is keeps
    assert bool((weight[..., outside] == 1).all()) is (threshold < 3)
