"""Images that a training cannot use well: too small, of two sizes, without colour, or with transparency."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from emuedit.data.png import encode_png
from emuedit.data_checks.picture_measures import PictureMeasures


class StubEmbedder:
    """Gives all images and texts the same vector."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(4)[:1].expand(len(images), -1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.eye(4)[:1].expand(len(texts), -1)


def make_image(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


GREY = np.repeat(make_image(3, 32, 32, 1), 3, 2)
PAIRS: dict[str, tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], set[str]]] = {
    "sound": ((make_image(1, 32, 32, 3), make_image(2, 32, 32, 3)), set()),
    "as small as allowed": ((make_image(1, 16, 24, 3), make_image(2, 16, 24, 3)), set()),
    "too small": ((make_image(1, 15, 24, 3), make_image(2, 15, 24, 3)), {"picture_sizes"}),
    "of two sizes": ((make_image(1, 32, 32, 3), make_image(2, 32, 24, 3)), {"picture_sizes"}),
    "with transparency": ((make_image(1, 32, 32, 4), make_image(2, 32, 32, 3)), {"picture_modes"}),
    "of one channel": ((make_image(1, 32, 32, 3), make_image(2, 32, 32)), {"picture_modes"}),
    "without colour": ((GREY, 255 - GREY), {"picture_modes"}),
    "colour on one side": ((GREY, make_image(2, 32, 32, 3)), set()),
    "unchanged": ((make_image(1, 32, 32, 3), make_image(1, 32, 32, 3)), {"unchanged_pictures"}),
}
"""Pairs of images and the checks that count them, for sides of at least 16 px."""


@pytest.mark.parametrize("name", PAIRS)
def test_each_fault_of_a_pair_is_counted(name: str) -> None:
    (before, after), want = PAIRS[name]
    captions = {"source_caption": "a", "target_caption": "b"}
    row: dict[str, Any] = {"id": "1", "source": {"bytes": encode_png(before)}, "target": {"bytes": encode_png(after)}, **captions}
    measures = PictureMeasures(min_side_px=16)
    measures.add([row], StubEmbedder())
    assert {check for check, share in measures.figures(StubEmbedder()).items() if share == 1.0} == want
