import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.testing import assert_close

from emuedit.core import soft_mask


def disc(r: float, size: tuple[int, int] = (40, 56), at: tuple[int, int] = (18, 30)) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (((y - at[0]) ** 2 + (x - at[1]) ** 2) <= r * r).double()[None, None]


@pytest.mark.parametrize("r", [0.0, 1.0, 2.5, 5.0])
def test_dilation_equals_scipys_with_a_disc(r: float) -> None:
    P = disc(6)
    P[..., 0, 0] = 1  # a single pixel in the corner: the border must not wrap around
    reach = int(r)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    expected = ndimage.binary_dilation(P[0, 0].numpy() > 0, structure=y**2 + x**2 <= r * r)
    np.testing.assert_array_equal(soft_mask.dilate(P, r)[0, 0].numpy() > 0, expected)
    assert (soft_mask.dilate(P, r).sum() > P.sum()) == (r >= 1)


def test_the_blur_keeps_the_dilated_area() -> None:
    P = disc(5)
    S = soft_mask.soft_mask(P, 0, 1, 0, radius_px=4, sigma_px=1.0)
    assert_close(S.sum(), soft_mask.dilate(P, 4).sum(), rtol=1e-6, atol=0)  # a blur keeps the sum
    assert S.sum() > 2 * P.sum()
    assert (S[P > 0] > 0.99).all()


def test_blur_equals_scipys() -> None:
    P = disc(7)
    expected = ndimage.gaussian_filter(P[0, 0].numpy(), 2.0, mode="nearest", truncate=3.0)
    assert_close(soft_mask.blur(P, 2.0)[0, 0].numpy(), expected)
    assert soft_mask.blur(P, 0.0) is P


def test_box_is_the_bounding_box() -> None:
    P = torch.cat([disc(3, at=(10, 40)), disc(5, at=(20, 12)), torch.zeros(1, 1, 40, 56, dtype=torch.float64)])
    B = soft_mask.box(P)
    assert B[0, 0, 7:14, 37:44].all()
    assert B[0].sum() == 49
    assert B[1].sum() == 121
    assert B[2].sum() == 0


def test_soft_mask_is_a_weighted_sum_in_zero_to_one() -> None:
    P = disc(6)
    assert_close(soft_mask.soft_mask(P, 1, 0, 0, 3, 2), P)
    assert_close(soft_mask.soft_mask(P, 0, 0, 1, 3, 2), soft_mask.box(P))
    S, B = soft_mask.soft_mask(P, 0, 1, 0, 3, 2), soft_mask.box(P)
    M = soft_mask.soft_mask(P, 0.5, 0.3, 0.2, 3, 2)
    assert_close(M, 0.5 * P + 0.3 * S + 0.2 * B)
    assert M.min() >= 0
    assert M.max() <= 1


def test_resizing_keeps_the_mean_and_the_axes() -> None:
    P = disc(6)
    small = soft_mask.resize(P, 10, 14)
    assert small.shape == (1, 1, 10, 14)
    assert_close(small.mean(), P.mean())
    assert small[0, 0].amax(0).argmax() == 30 // 4


def test_errors_for_bad_masks_and_weights_say_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"float \[B, 1, H, W\] in \[0, 1\], got \(4, 8, 8\) torch.uint8; call soft_mask.from_uint8"
    ):
        soft_mask.box(torch.zeros(4, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="clamp it first"):
        soft_mask.box(torch.full((1, 1, 2, 2), math.nan))
    with pytest.raises(ValueError, match="sum to 1"):
        soft_mask.soft_mask(disc(3), 0.5, 0.2, 0.2, 1, 1)
    with pytest.raises(ValueError, match=r"must be at least 0 and sum to 1, got 1\.5, -0\.5, 0"):
        soft_mask.soft_mask(disc(3), 1.5, -0.5, 0, 1, 1)
    assert_close(soft_mask.from_uint8(torch.tensor([[[0, 255]]], dtype=torch.uint8)), torch.tensor([[[[0.0, 1.0]]]]))
    assert_close(soft_mask.from_uint8(torch.tensor([[[False, True]]])), torch.tensor([[[[0.0, 1.0]]]]))


@pytest.mark.parametrize("r", [0.0, 1.5, 7.0])
def test_masks_of_zeros_and_ones_are_dilated_as_others_are(r: float) -> None:
    P = torch.cat([disc(6), torch.zeros_like(disc(6)), torch.ones_like(disc(6))])
    assert torch.equal(soft_mask.dilate(P, r), 2 * soft_mask.dilate(P / 2, r))
