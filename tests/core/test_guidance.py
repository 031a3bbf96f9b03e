import torch
from torch.testing import assert_close

from emuedit.core.guidance import focused, relevance, rescaled, two_conditions


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


def test_the_text_matters_where_it_changes_the_prediction() -> None:
    (image,) = draws(1)
    full = image.clone()
    full[0, :, 2, 5] += 3.0
    r = relevance(image, full)
    assert r.shape == (2, 1, 8, 8)
    assert (r[0, 0] > 0).nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (4, 5, 6)]
    assert r[0].max() == 1
    assert not r[1].any(), "a text that changes nothing matters nowhere"


def test_focus_keeps_guidance_to_where_the_text_matters() -> None:
    r = torch.tensor([0.0, 0.5, 1.0])
    assert_close(focused(3.0, r, 1.0), torch.tensor([1.0, 2.0, 3.0]))
    assert_close(focused(3.0, r, 0.5), torch.tensor([2.0, 2.5, 3.0]))
    assert_close(focused(3.0, r, 0.0), torch.full((3,), 3.0))
    assert_close(focused(1.0, r, 1.0), torch.ones(3))
    null, image, full = draws(3)
    weight = focused(4.0, relevance(image, full), 1.0)
    got = two_conditions(null, image, full, 1.0, weight)
    assert_close(got, image + weight * (full - image))
