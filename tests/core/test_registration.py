import pytest
import torch

from emuedit.core.registration import estimate_shift

SIZE = 48


def waves(dx: float = 0.0, dy: float = 0.0) -> torch.Tensor:
    """A sum of smooth waves, shifted exactly by (dx, dy) px: [3, H, W] in [-1, 1]."""
    generator = torch.Generator().manual_seed(5)
    y, x = torch.meshgrid(torch.arange(SIZE) - dy, torch.arange(SIZE) - dx, indexing="ij")
    image = torch.zeros(3, SIZE, SIZE, dtype=torch.float64)
    for _ in range(6):
        fx, fy = (torch.rand(2, generator=generator) - 0.5) * 0.8
        phase = torch.rand(3, generator=generator)[:, None, None] * 6.28
        image += torch.sin(fx * x + fy * y + phase) / 6
    return image.float()


ALL = torch.ones(SIZE, SIZE)


@pytest.mark.parametrize("d", [(0.0, 0.0), (0.25, 0.0), (0.0, -0.1), (-0.6, 0.4), (1.7, -1.2)])
def test_a_known_shift_is_estimated(d: tuple[float, float]) -> None:
    assert estimate_shift(waves(), waves(*d), ALL) == pytest.approx(d, abs=0.01)
    assert estimate_shift(waves(*d), waves(), ALL) == pytest.approx((-d[0], -d[1]), abs=0.01)


def test_pixels_without_weight_do_not_count() -> None:
    """An edit covers a quarter of the image; the rest is shifted, or not."""
    edited = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    edited[8:32, 8:32] = True
    for d in ((0.0, 0.0), (0.3, -0.2)):
        target = torch.where(edited, torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), waves(*d))
        assert estimate_shift(waves(), target, (~edited).float()) == pytest.approx(d, abs=0.01)


def test_an_undefined_shift_is_none() -> None:
    stripes = torch.sin(torch.arange(SIZE) / 2.0).expand(3, SIZE, SIZE)
    assert estimate_shift(waves(), waves(), torch.zeros(SIZE, SIZE)) is None
    assert estimate_shift(torch.zeros(3, SIZE, SIZE), waves(), ALL) is None
    assert estimate_shift(stripes, stripes, ALL) is None  # any shift along the stripes explains the images
    assert estimate_shift(waves(), -waves(), ALL) is None  # no small shift turns an image into its negative


def test_different_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"want two images .* of one size, got .*\(48, 47\)"):
        estimate_shift(waves(), waves(), ALL[:, 1:])
