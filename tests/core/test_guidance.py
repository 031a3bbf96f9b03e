import torch
from torch.testing import assert_close

from emuedit.core.guidance import held, rescaled, two_conditions


def draws(n: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64) for _ in range(n)]


def test_scales_of_one_give_the_full_condition() -> None:
    null, image, full = draws(3)
    assert_close(two_conditions(null, image, full, 1.0, 1.0), full)
    assert_close(two_conditions(null, image, full, 1.0, 0.0), image)
    assert_close(two_conditions(null, image, full, 0.0, 0.0), null)


def test_it_is_the_formula_of_instruct_pix2pix() -> None:
    null, image, full = draws(3)
    want = null * (1 - 1.5) + image * (1.5 - 5.0) + full * 5.0
    assert_close(two_conditions(null, image, full, 1.5, 5.0), want)


def test_without_an_image_it_is_plain_guidance() -> None:
    null, full = draws(2)
    assert_close(two_conditions(null, null, full, 9.0, 5.0), null + 5.0 * (full - null))


def test_rescaling_restores_the_spread_and_nothing_else() -> None:
    e, full = draws(2)
    whole = rescaled(7 * e, full, 1.0)
    assert_close(whole.std(dim=(1, 2, 3)), full.std(dim=(1, 2, 3)))
    factor = (whole / (7 * e)).flatten(1)
    assert_close(factor, factor[:, :1].expand_as(factor))
    assert_close(rescaled(7 * e, full, 0.0), 7 * e)


def test_what_does_not_change_is_the_source() -> None:
    e, e_source = draws(2)
    m = torch.zeros(2, 1, 8, 8, dtype=e.dtype)
    m[0, :, :4] = 1
    m[1] = 0.25
    whole = held(e, e_source, m, 1.0)
    assert_close(whole[0], torch.cat([e[0, :, :4], e_source[0, :, 4:]], 1))
    assert_close(whole[1], 0.25 * e[1] + 0.75 * e_source[1])
    assert_close(held(e, e_source, m, 0.5), (e + whole) / 2)
    assert torch.equal(held(e, e_source, m, 0.0), e)
