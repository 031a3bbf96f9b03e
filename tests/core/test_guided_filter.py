"""The guided filter against its definition, and what it is used for: a mask that follows the edges of an image."""

import numpy as np
import pytest
import torch

from emuedit.core.guided_filter import guided_filter


def by_definition(guide: np.ndarray, values: np.ndarray, radius_px: int, epsilon: float) -> np.ndarray:
    """One window at a time: guide [3, H, W], values [H, W]."""
    _, height, width = guide.shape
    a, b = np.zeros((3, height, width)), np.zeros((height, width))
    windows = {}
    for y in range(height):
        for x in range(width):
            rows = slice(max(0, y - radius_px), y + radius_px + 1)
            columns = slice(max(0, x - radius_px), x + radius_px + 1)
            windows[y, x] = (rows, columns)
            colours, p = guide[:, rows, columns].reshape(3, -1), values[rows, columns].ravel()
            covariance = np.cov(colours, bias=True) + epsilon * np.eye(3)
            a[:, y, x] = np.linalg.solve(covariance, (colours * p).mean(1) - colours.mean(1) * p.mean())
            b[y, x] = p.mean() - a[:, y, x] @ colours.mean(1)
    result = np.zeros((height, width))
    for (y, x), (rows, columns) in windows.items():
        mean_a, mean_b = a[:, rows, columns].reshape(3, -1).mean(1), b[rows, columns].mean()
        result[y, x] = mean_a @ guide[:, y, x] + mean_b
    return result


@pytest.mark.parametrize("radius_px", [1, 3])
def test_it_equals_its_definition(radius_px: int) -> None:
    random = np.random.default_rng(0)
    guide, values = random.random((3, 9, 12)), random.random((9, 12))
    q = guided_filter(torch.from_numpy(guide), torch.from_numpy(values)[None], radius_px, 1e-2)
    np.testing.assert_allclose(q[0].numpy(), by_definition(guide, values, radius_px, 1e-2), atol=1e-9)


def test_a_rounded_mask_gets_the_corners_of_the_object_in_the_image() -> None:
    image = torch.zeros(3, 24, 24)
    image[0, 6:18, 6:18] = 1.0  # a red square on black
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    outside = ((x - 11.5).abs() ** 4 + (y - 11.5).abs() ** 4 > 6.0**4).float()[None]  # the square with rounded corners is 0
    assert outside[0, 6, 6] == 1
    q = guided_filter(image, outside, 2)
    assert q[0, 6, 6] < 0.5 < q[0, 5, 5], "the corner belongs to the square"


def test_images_without_edges_are_averaged_and_shapes_are_checked() -> None:
    values = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    flat = guided_filter(torch.full((3, 8, 8), 0.3), values, 8)
    torch.testing.assert_close(flat, values.mean().expand_as(values))
    with pytest.raises(ValueError, match=r"want a guide \[3, H, W\] and values \[1, H, W\], got \(1, 8, 8\)"):
        guided_filter(values, values, 2)
