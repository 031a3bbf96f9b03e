import pytest
import torch
from torch.testing import assert_close

from emuedit.core.guidance import blend_with_source, classifier_free, guided_steps, rescale, terms_of, two_conditions


def random_predictions(n: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(n)]


def test_scales_of_one_give_the_full_condition() -> None:
    null, image, full = random_predictions(3)
    assert_close(two_conditions(null, image, full, 1.0, 1.0), full)
    assert_close(two_conditions(null, image, full, 1.0, 0.0), image)
    assert_close(two_conditions(null, image, full, 0.0, 0.0), null)


def test_two_conditions_is_the_formula_of_instruct_pix2pix() -> None:
    null, image, full = random_predictions(3)
    expected = null * (1 - 1.5) + image * (1.5 - 5.0) + full * 5.0
    assert_close(two_conditions(null, image, full, 1.5, 5.0), expected)


@pytest.mark.parametrize(
    ("scales", "terms"),
    [
        ((1.0, 1.0), ("full",)), ((1.0, 3.0), ("image", "full")), ((1.8, 1.8), ("null", "full")),
        ((1.3, 3.0), ("null", "image", "full")), ((0.0, 0.0), ("null", "full")), ((1.3, 1.0), ("null", "image", "full")),
    ],
)  # fmt: skip
def test_a_term_without_weight_is_left_out(scales: tuple[float, float], terms: tuple[str, ...]) -> None:
    assert terms_of(*scales) == terms
    all_terms = dict(zip(("null", "image", "full"), random_predictions(3), strict=True))
    kept = {name: e if name in terms else None for name, e in all_terms.items()}
    assert_close(two_conditions(*kept.values(), *scales), two_conditions(*all_terms.values(), *scales))  # type: ignore[arg-type, misc]


def test_without_an_image_it_is_classifier_free_guidance() -> None:
    null, full = random_predictions(2)
    assert_close(two_conditions(null, null, full, 9.0, 5.0), null + 5.0 * (full - null))
    assert_close(classifier_free(null, full, 5.0), null * (1 - 5.0) + full * 5.0)


def test_rescaling_restores_the_standard_deviation_and_changes_nothing_else() -> None:
    e, full = random_predictions(2)
    rescaled_e = rescale(7 * e, full, 1.0)
    assert_close(rescaled_e.std(dim=(1, 2, 3)), full.std(dim=(1, 2, 3)))
    factor = (rescaled_e / (7 * e)).flatten(1)
    assert_close(factor, factor[:, :1].expand_as(factor))
    assert_close(rescale(7 * e, full, 0.0), 7 * e)


def test_outside_the_change_mask_the_prediction_is_that_of_the_source() -> None:
    e, e_source = random_predictions(2)
    change_mask = torch.zeros(2, 1, 8, 8, dtype=e.dtype)
    change_mask[0, :, :4] = 1
    change_mask[1] = 0.25
    blend = blend_with_source(e, e_source, change_mask, 1.0)
    assert_close(blend[0], torch.cat([e[0, :, :4], e_source[0, :, 4:]], 1))
    assert_close(blend[1], 0.25 * e[1] + 0.75 * e_source[1])
    assert_close(blend_with_source(e, e_source, change_mask, 0.5), (e + blend) / 2)
    assert torch.equal(blend_with_source(e, e_source, change_mask, 0.0), e)


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        ((0.0, 1.0), range(8)),
        ((0.25, 0.75), range(2, 6)),
        ((0.5, 0.5), range(4, 4)),
        ((0.0, 0.3), range(2)),
        ((0.9, 1.0), range(7, 8)),
    ],
)
def test_guided_steps_are_the_shares_rounded_to_steps(interval: tuple[float, float], steps: range) -> None:
    assert guided_steps(interval, 8) == steps
