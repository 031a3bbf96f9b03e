import pytest
import torch

from emuedit.core.change_threshold import changed, unchanged_kept


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    before = torch.rand(1, 3, 32, 48, generator=g) * 2 - 1
    after = before + 0.004 * torch.randn(before.shape, generator=g)  # the noise of an autoencoder
    after[..., 8:20, 10:30] = torch.rand(1, 3, 12, 20, generator=g) * 2 - 1
    return before, after.clamp(-1, 1)


def test_noise_is_undone_and_the_edit_stays() -> None:
    before, after = pictures()
    out = unchanged_kept(before, after)
    assert torch.equal(out[..., 10:18, 12:28], after[..., 10:18, 12:28])
    far = torch.ones(32, 48, dtype=torch.bool)
    far[5:23, 7:33] = False
    assert torch.equal(out[..., far], before[..., far])
    assert not torch.equal(after[..., far], before[..., far])


def test_the_threshold_is_on_the_sum_over_colours_in_zero_to_one() -> None:
    before = torch.zeros(1, 3, 16, 16)
    for step, expected in ((0.0199, False), (0.0201, True)):  # [-1, 1]: 3 channels of 0.02 are 0.03 in [0, 1]
        assert changed(before, before + step).all().item() is expected
    one_channel = before.clone()
    one_channel[:, 0] = 0.0601
    assert changed(before, one_channel).all()


def test_twenty_turns_without_an_edit_do_not_drift() -> None:
    first, _ = pictures()
    g = torch.Generator().manual_seed(1)
    now = first
    for _ in range(20):
        now = unchanged_kept(now, (now + 0.004 * torch.randn(now.shape, generator=g)).clamp(-1, 1))
    assert torch.equal(now, first)


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="of one size"):
        changed(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
