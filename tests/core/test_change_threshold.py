import pytest
import torch

from emuedit.core.change_threshold import exceeds_threshold

ALPHA = 0.03
"""Emu Edit's threshold."""


def keep_unchanged(before: torch.Tensor, after: torch.Tensor, unchanged: torch.Tensor | None = None) -> torch.Tensor:
    """`after` where it changed from `unchanged` (default: `before`), else `before`."""
    return torch.where(exceeds_threshold(before if unchanged is None else unchanged, after, ALPHA), after, before)


def edit_with_noise() -> tuple[torch.Tensor, torch.Tensor]:
    """An image, and the same image with an edited rectangle and the noise of an autoencoder."""
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(1, 3, 32, 48, generator=generator) * 2 - 1
    after = before + 0.004 * torch.randn(before.shape, generator=generator)
    after[..., 8:20, 10:30] = torch.rand(1, 3, 12, 20, generator=generator) * 2 - 1
    return before, after.clamp(-1, 1)


def test_noise_is_removed_and_the_edit_is_kept() -> None:
    before, after = edit_with_noise()
    out = keep_unchanged(before, after)
    assert torch.equal(out[..., 10:18, 12:28], after[..., 10:18, 12:28])
    outside = torch.ones(32, 48, dtype=torch.bool)
    outside[5:23, 7:33] = False
    assert torch.equal(out[..., outside], before[..., outside])
    assert not torch.equal(after[..., outside], before[..., outside])


def test_the_threshold_is_on_the_sum_over_colours_in_zero_to_one() -> None:
    before = torch.zeros(1, 3, 16, 16)
    for step, expected in ((0.0199, False), (0.0201, True)):  # in [-1, 1]: 3 channels of 0.02 are 0.03 in [0, 1]
        assert exceeds_threshold(before, before + step, ALPHA).all().item() is expected
    one_channel = before.clone()
    one_channel[:, 0] = 0.0601
    assert exceeds_threshold(before, one_channel, ALPHA).all()


def test_twenty_turns_without_an_edit_do_not_drift() -> None:
    first, _ = edit_with_noise()
    generator = torch.Generator().manual_seed(1)
    current = first
    for _ in range(20):
        noisy = (current + 0.004 * torch.randn(current.shape, generator=generator)).clamp(-1, 1)
        current = keep_unchanged(current, noisy)
    assert torch.equal(current, first)


def test_the_error_of_an_autoencoder_is_no_change() -> None:
    generator = torch.Generator().manual_seed(2)
    before = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    reconstruction = (before + 0.1 * torch.randn(before.shape, generator=generator)).clamp(
        -1, 1
    )  # the toy VAE errs by 0.05 in [0, 1]
    assert exceeds_threshold(before, reconstruction, ALPHA).all()
    assert torch.equal(keep_unchanged(before, reconstruction, unchanged=reconstruction), before)
    after = reconstruction.clone()
    after[..., 10:20, 10:20] *= -1
    out = keep_unchanged(before, after, unchanged=reconstruction)
    assert torch.equal(out[..., 12:18, 12:18], after[..., 12:18, 12:18])
    assert torch.equal(out[..., :6, :], before[..., :6, :])


def test_images_of_different_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="of one size"):
        exceeds_threshold(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5), ALPHA)
