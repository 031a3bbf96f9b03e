"""An edit of a smaller copy, carried over to the picture: only what changed is touched."""

import pytest
import torch
from torch import Tensor

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
    reach = 4 * (1 + compositing.BORDER_PX)  # the border, and the reach of the enlargement, at four times the size
    assert rows.min() >= 4 * 10 - reach
    assert rows.max() < 4 * 14 + reach
    assert columns.min() >= 4 * 10 - reach
    assert columns.max() < 4 * 14 + reach
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


def test_images_of_different_shapes_are_an_error(picture: Tensor) -> None:
    with pytest.raises(ValueError, match="want two images of equal shape"):
        compositing.changed_pixels(picture, picture[..., 1:])
