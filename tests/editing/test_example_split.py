"""Which examples of a task are held out."""

from collections.abc import Sequence

import numpy as np
import pytest

from emuedit.data.image_io import Pixels
from emuedit.editing.learn_task import Split


def images(values: Sequence[int]) -> Pixels:
    """Images of one value each."""
    return np.asarray(values, np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)


def test_a_fifth_is_held_out_if_there_are_five_images() -> None:
    assert Split.of(images(range(4))) == Split([0, 1, 2, 3], [0, 1, 2, 3])
    for n in (5, 6, 30):
        split = Split.of(images(range(n)))
        assert len(split.held_out) == n // 5
        assert sorted(split.learned + split.held_out) == list(range(n))
        assert split == Split.of(images(range(n))), "the same at each call"


@pytest.mark.parametrize("n_wordings", [4, 5])
def test_each_of_the_instructions_used_in_turn_is_learned(n_wordings: int) -> None:
    """Of five wordings, every fifth example had one that was never learned, and none of the others was held out."""
    for n in range(10, 60):
        split = Split.of(images(range(n)))
        assert len({row % n_wordings for row in split.learned}) == n_wordings
        assert len({row % n_wordings for row in split.held_out}) > 1


def test_an_image_is_not_in_both_parts() -> None:
    values = [number for number in range(10) for _ in range(3)]
    split = Split.of(images(values))
    learned, held_out = ({values[row] for row in rows} for rows in (split.learned, split.held_out))
    assert len(held_out) == 2
    assert not learned & held_out
    assert Split.of(images(values[:12])) == Split(list(range(12)), list(range(12))), "four images"


def test_an_image_with_most_of_the_examples_is_learned_from() -> None:
    assert set(range(26)) <= set(Split.of(images([0] * 26 + [1, 2, 3, 4])).learned)
