"""Images that a training cannot use well: too small, of two sizes, without colour, or with transparency."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from emuedit.data.png import encode_png
from emuedit.data_checks import picture_measures
from emuedit.data_checks.picture_measures import PictureMeasures, in_batches


class StubEmbedder:
    """Gives all images and texts the same vector."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        """Number of values of each batch of images."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(images.numel())
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


class MeanEmbedder(StubEmbedder):
    """Embeds an image as its mean colour."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        super().embed_images(images)
        return torch.nn.functional.normalize(images.mean((2, 3)))


def make_row(number: int, *shape: int) -> dict[str, Any]:
    pictures = {side: {"bytes": encode_png(make_image(2 * number + k, *shape))} for k, side in enumerate(("source", "target"))}
    return {"id": str(number), "source_caption": "a", "target_caption": "b", **pictures}


def measure(rows: Sequence[dict[str, Any]], divisor: int = 1) -> tuple[dict[str, NDArray[Any]], list[int]]:
    """The vectors, and the number of values of each batch of images."""
    measures, clip = PictureMeasures(min_side_px=16), MeanEmbedder()
    for batch in in_batches(rows, divisor):
        measures.add(batch, clip)
    return measures.vectors(), clip.sizes


def test_an_image_of_several_pairs_is_embedded_once() -> None:
    """Networks give an image other last bits in another batch, and pairs with one source are found by its vector."""
    rows = [make_row(number, 8, 8, 3) for number in range(4)]
    rows[3]["source"] = rows[0]["source"]
    measures, clip = PictureMeasures(min_side_px=4), MeanEmbedder()
    for batch in (rows[:2], rows[2:]):
        measures.add(batch, clip)
    source, target = (measures.vectors()[side] for side in ("source", "target"))
    assert clip.sizes == [n * 8 * 8 * 3 for n in (2, 2, 1, 2)]
    assert np.array_equal(source[3], source[0])
    assert len({*map(bytes, source), *map(bytes, target)}) == 7


@pytest.mark.slow
def test_batches_of_large_images_are_bounded_by_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [make_row(number, 64, 96, 3) for number in range(12)]
    at_once, sizes = measure(rows)
    assert sizes == [12 * 64 * 96 * 3] * 2
    for limit_px, divisor, n_pairs in ((6 * 64 * 96 + 1, 1, 3), (6 * 64 * 96, 3, 1), (100, 1, 1)):
        monkeypatch.setattr(picture_measures, "PIXELS_PER_BATCH", limit_px)
        vectors, sizes = measure(rows, divisor)
        assert sizes == [n_pairs * 64 * 96 * 3] * (24 // n_pairs)
        assert all(np.allclose(vectors[side], at_once[side]) for side in ("source", "target"))


def test_batches_of_small_images_are_bounded_by_the_number_of_pairs_and_damaged_ones_are_in_them() -> None:
    row, damaged = make_row(0, 16, 16, 3), {"id": "1", "source": {"bytes": b"x"}, "target": {"bytes": b""}}
    assert [len(batch) for batch in in_batches([row, damaged] * 50)] == [64, 36]
    assert [len(batch) for batch in in_batches([row] * 3, divisor=1000)] == [1, 1, 1]
    assert not list(in_batches([]))
