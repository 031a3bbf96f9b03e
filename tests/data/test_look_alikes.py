"""Which thumbnails look alike."""

import numpy as np
import pytest

from emuedit.data import look_alikes
from emuedit.data.image_io import Pixels


def make_thumbnails(n: int) -> Pixels:
    """Noise around a colour of their own, [n, 16, 16, 3]."""
    random = np.random.default_rng(0)
    colours = random.normal(128, 45, (n, 1, 1, 3))
    return np.clip(random.normal(colours, 25, (n, *look_alikes.SHAPE)), 0, 255).astype(np.uint8)


def change(thumbnails: Pixels, levels: int) -> Pixels:
    """Every value raised or lowered by at most `levels`, some of them by exactly that."""
    difference = np.random.default_rng(1).integers(-levels, levels + 1, thumbnails.shape)
    return np.clip(thumbnails + difference, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("max_levels", [look_alikes.EXACT_LEVELS, look_alikes.COPY_LEVELS])
def test_a_matcher_finds_what_a_comparison_of_all_values_finds(max_levels: int) -> None:
    thumbnails = make_thumbnails(100)
    brighter = np.minimum(thumbnails[:20], 255 - max_levels) + np.uint8(max_levels)  # all sums differ by the most
    others = np.concatenate([change(thumbnails[:30], max_levels), change(thumbnails[30:60], max_levels + 1), brighter])
    expected = [bool(row.any()) for row in look_alikes.match(others, thumbnails, max_levels)]
    matcher = look_alikes.Matcher(thumbnails, max_levels)
    assert [matcher.has_match(other) for other in others] == expected
    assert all(expected[:30])
    assert not any(expected[30:60])


def test_a_matcher_compares_only_thumbnails_of_a_similar_colour() -> None:
    """All values of a large benchmark, for each of millions of images, would take a day."""
    thumbnails = make_thumbnails(200)
    matcher = look_alikes.Matcher(thumbnails, look_alikes.COPY_LEVELS)
    means = thumbnails.mean((1, 2))
    others = np.abs(means - means[0]).max(1) > look_alikes.COPY_LEVELS
    assert others.sum() > 100
    matcher._values[others] = thumbnails[0].reshape(-1)
    matcher._values[0] = 0
    assert not matcher.has_match(thumbnails[0]), "thumbnails of another colour were compared"


def test_without_thumbnails_nothing_matches() -> None:
    thumbnails = make_thumbnails(1)
    assert not look_alikes.Matcher(thumbnails[:0], 24).has_match(thumbnails[0])
