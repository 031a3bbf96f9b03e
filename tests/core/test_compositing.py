"""An edit of a smaller copy, carried over to the picture: only what changed is touched."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

from emuedit.annotators.drawing import apply_colour_filter
from emuedit.core import compositing


@pytest.fixture
def picture() -> Tensor:
    """1 x 3 x 120 x 160 with fine detail."""
    return torch.rand(1, 3, 120, 160, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


def edit(before: Tensor, value: float) -> Tensor:
    """Pixels 10 to 13 of 30 x 40 get a value."""
    after = before.clone()
    after[..., 10:14, 10:14] = value
    return after


def test_pixels_beyond_the_border_are_kept_bit_for_bit(picture: Tensor) -> None:
    before = compositing.shrink(picture, 30, 40)
    result = compositing.enlarge_edit(picture, before, edit(before, 1.0))
    changed = (result != picture).any(1)[0]
    rows, columns = (changed.any(dim).nonzero().flatten() for dim in (1, 0))
    reach = 4 * (0.5 + compositing.BORDER_PX)  # the border, and the reach of the enlargement, at four times the size
    assert rows.min() >= 4 * 10 - reach
    assert rows.max() < 4 * 14 + reach
    assert columns.min() >= 4 * 10 - reach
    assert columns.max() < 4 * 14 + reach
    assert rows.min() <= 4 * 10 - 4, "the edit fades out over a border around it"
    assert columns.max() >= 4 * 14 + 3
    assert (result[..., 44:52, 44:52] > 0.99).all(), "the inside is the edit"


def test_an_edit_that_changes_nothing_returns_the_picture(picture: Tensor) -> None:
    before = compositing.shrink(picture, 30, 40)
    assert compositing.enlarge_edit(picture, before, before.clone()) is picture


def test_an_edit_of_the_whole_image_replaces_pixels_that_happen_to_be_equal_too(picture: Tensor) -> None:
    before = compositing.shrink(picture, 30, 40)
    partly, everywhere = (
        compositing.enlarge_edit(picture, before, edit(before, 1.0), is_full=is_full) for is_full in (False, True)
    )
    assert (partly == picture).float().mean() > 0.9
    assert (everywhere == picture).float().mean() < 0.1


def test_a_change_of_light_keeps_the_fine_detail(picture: Tensor) -> None:
    before = compositing.shrink(picture, 30, 40)
    darker = (before - 0.3).clamp(-1, 1)
    kept = compositing.enlarge_edit(picture, before, darker, keeps_detail=True)
    replaced = compositing.enlarge_edit(picture, before, darker)

    def detail(image: Tensor) -> float:
        return float((image[..., 1:] - image[..., :-1]).abs().mean())

    assert detail(kept) > 0.9 * detail(picture)
    assert detail(replaced) < 0.5 * detail(picture)
    assert float((kept - picture).mean()) == pytest.approx(-0.3, abs=0.05)


def filtered(name: str, image: Tensor) -> Tensor:
    """The exact result of a colour filter."""
    pixels = apply_colour_filter(name, (image / 2 + 0.5).permute(0, 2, 3, 1).numpy())
    return torch.from_numpy(np.clip(pixels, 0, 1).astype(np.float32)).permute(0, 3, 1, 2) * 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "max_distance"),
    [("brighten", 1e-5), ("less contrast", 1e-5), ("more contrast", 0.012), ("blur", 0.006), ("sharpen", 0.02), ("hue", 0.02)],
)
def test_a_filter_of_a_smaller_copy_gives_the_photograph_the_detail_of_the_filtered_one(name: str, max_distance: float) -> None:
    """Detail of the old strength stays sharp in a blurred photograph: the distance of blur was 0.051, of sharpen 0.055."""
    photograph = torch.from_numpy(load_sample_image("china.jpg").astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    before = compositing.shrink(photograph, 112, 160)
    result = compositing.enlarge_edit(photograph, before, filtered(name, before), keeps_detail=True, is_full=True)
    assert float((result - filtered(name, photograph)).abs().mean()) / 2 < max_distance


def test_the_gain_of_detail_is_that_of_the_finest_band(picture: Tensor) -> None:
    assert compositing.detail_gain(picture, 0.4 * picture + 0.2) == pytest.approx(0.4, abs=1e-5)
    assert compositing.detail_gain(picture, F.avg_pool2d(picture, 3, 1, 1)) < 0.2
    assert compositing.detail_gain(picture, -picture) == 0.0
    assert compositing.detail_gain(picture, 9 * picture) == compositing.MAX_DETAIL_GAIN
    flat = torch.full_like(picture, 0.3) + 1e-3 * picture
    assert compositing.detail_gain(flat, picture) == 1.0, "a flat copy has no detail to compare"


@pytest.mark.parametrize("keeps_detail", [False, True])
def test_values_stay_in_the_range_of_images(picture: Tensor, keeps_detail: bool) -> None:
    """Light added to a bright pixel would exceed it, and so would the overshoot of bicubic interpolation at an edge."""
    before = compositing.shrink(picture, 30, 40)
    after = torch.ones_like(before)
    after[..., 20:] = -1.0
    result = compositing.enlarge_edit(picture, before, after, keeps_detail)
    assert (result.amin(), result.amax()) == (-1.0, 1.0)


def test_a_smaller_copy_has_no_aliasing_and_stays_in_range(picture: Tensor) -> None:
    assert compositing.shrink(picture, 30, 40).std() < 0.5 * picture.std(), "sixteen pixels of noise are averaged"
    edge = torch.ones(1, 3, 32, 32)
    edge[..., :15] = -1.0
    assert compositing.shrink(edge, 8, 8).abs().amax() == 1.0, "bicubic interpolation overshoots at an edge"


def test_images_of_different_shapes_are_an_error(picture: Tensor) -> None:
    with pytest.raises(ValueError, match="want two images of equal shape"):
        compositing.changed_pixels(picture, picture[..., 1:])


STEP = 0.8
"""The difference of two flat areas, in [0, 1]."""


def flat_edit(size: int, changed: Tensor, border_px: float) -> Tensor:
    """A flat image of `size` px that is brighter by STEP in the changed region, bool [size, size]."""
    before, after = torch.full((1, 3, size, size), -0.9), torch.full((1, 3, size, size), 2 * STEP - 0.9)
    return compositing.blend(before, after, compositing.soft_border(changed[None, None], border_px))


@pytest.mark.parametrize("border_px", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("shape", ["disc", "square", "corner"])
def test_the_gradient_across_a_border_is_at_most_its_share_of_the_step(shape: str, border_px: int) -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    changed, inside = {
        "disc": ((y - 30) ** 2 + (x - 28) ** 2 < 15**2, (slice(28, 32), slice(26, 30))),
        "square": ((y > 12) & (y < 40) & (x > 20) & (x < 50), (slice(24, 28), slice(32, 36))),
        "corner": ((y < 30) & (x < 30), (slice(0, 20), slice(0, 20))),
    }[shape]
    result = flat_edit(64, changed, border_px)
    gradient = max(float(result.diff(dim=dim).abs().max()) / 2 for dim in (2, 3))
    assert gradient == pytest.approx(STEP / (border_px + 1))
    assert torch.equal(result[0, 0] != -0.9, changed), "a border changes no further pixel"
    assert (result[0, 0][inside] == 2 * STEP - 0.9).all(), "the inside is the edit, also at the image's edge"


def test_weights_of_none_and_all_pixels_have_no_border() -> None:
    rows = torch.stack([torch.zeros(8, 8), torch.ones(8, 8), torch.eye(8)]).bool()[:, None]
    weight = compositing.soft_border(rows, 3)
    assert weight.dtype == torch.float32
    assert (weight[0] == 0).all()
    assert (weight[1] == 1).all()
    assert torch.equal(weight[2, 0], torch.eye(8) / 4)


def test_blending_keeps_both_ends_bit_for_bit_whatever_the_edit_is() -> None:
    before, after = torch.rand(2, 1, 3, 4, 5).unbind()
    after[0, 0, 0, 0] = torch.nan
    weight = (torch.arange(20).view(1, 1, 4, 5) % 3 / 2).contiguous()
    result = compositing.blend(before, after, weight)
    for end, image in ((0.0, before), (1.0, after)):
        at = (weight == end).expand_as(result)
        assert torch.equal(result[at], image[at])


def test_a_window_fades_into_the_image_except_at_its_edge() -> None:
    weight = compositing.window_border((slice(0, 6), slice(2, 8)), (6, 10), 1)[0, 0]
    assert torch.equal(weight, torch.tensor([0.5, 1, 1, 1, 1, 0.5]).expand(6, 6))
    assert (compositing.window_border((slice(1, 6), slice(2, 8)), (7, 10), 0) == 1).all()
