from collections.abc import Sequence
from typing import Any

import pytest
import torch

from emuedit.models import edit_similarity


class Eye:
    """Sees the mean colour of a picture, and reads a text as a colour."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize((images + 1).mean((2, 3)), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.eye(3)[[["red", "green", "blue"].index(text) for text in texts]]


EYE: Any = Eye()


def plain(r: float, g: float, b: float) -> torch.Tensor:
    return torch.tensor([float(r), g, b])[:, None, None].expand(3, 4, 4) * 2 - 1


def test_an_edit_that_does_what_was_said_and_one_that_does_nothing() -> None:
    before = torch.stack([plain(1, 0, 0)] * 3)
    after = torch.stack([plain(0, 1, 0), plain(1, 0, 0), plain(0, 1, 0)])
    got = edit_similarity.measure(EYE, EYE, before, after, ["red"] * 3, ["green", "green", "red"])
    assert got["clip_source"] == [1, 1, 1]
    assert got["clip_target"] == [1, 0, 0]
    assert got["clip_direction"] == [pytest.approx(1), None, None]  # nothing changed in the picture; in the caption
    assert got["clip_image"] == got["dino"] == [0, 1, 0]
    assert got["l1"] == [pytest.approx(2 / 3), 0, pytest.approx(2 / 3)]


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        edit_similarity.measure(EYE, EYE, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8), ["red"], ["red"])
