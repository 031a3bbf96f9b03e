from collections.abc import Sequence
from typing import Any

import pytest
import torch

from emuedit.metrics.edit_scores import measure_edits


class ColourScorer:
    """Embeds an image as its mean colour, and a text as the colour that it names."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize((images + 1).mean((2, 3)), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.eye(3)[[["red", "green", "blue"].index(text) for text in texts]]


SCORER: Any = ColourScorer()


def plain_image(r: float, g: float, b: float) -> torch.Tensor:
    return torch.tensor([float(r), g, b])[:, None, None].expand(3, 4, 4) * 2 - 1


def test_metrics_of_a_correct_edit_and_of_no_edit() -> None:
    before = torch.stack([plain_image(1, 0, 0)] * 3)
    after = torch.stack([plain_image(0, 1, 0), plain_image(1, 0, 0), plain_image(0, 1, 0)])
    columns = measure_edits(SCORER, SCORER, before, after, ["red"] * 3, ["green", "green", "red"])
    assert columns["clip_source"] == [1, 1, 1]
    assert columns["clip_target"] == [1, 0, 0]
    assert columns["clip_direction"] == [
        pytest.approx(1),
        None,
        None,
    ]  # None: the image did not change; the caption did not change
    assert columns["clip_image"] == columns["dino"] == [0, 1, 0]
    assert columns["l1"] == [pytest.approx(2 / 3), 0, pytest.approx(2 / 3)]


def test_images_of_different_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="of equal shape"):
        measure_edits(SCORER, SCORER, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8), ["red"], ["red"])
