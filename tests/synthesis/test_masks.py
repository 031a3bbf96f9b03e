from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from emuedit.models.detector import Detections
from emuedit.models.segmenter import Masks
from emuedit.synthesis import masks
from emuedit.synthesis.masks import Bounds, Found, MaskRecipe

BOUNDS = Bounds(threshold=0.2, nms_iou=0.5, min_area=0.01, max_area=0.5)
PRECISE: dict[str, Any] = {
    "w_p": 1.0, "w_s": 0.0, "w_b": 0.0, "radius_px": 0.0, "sigma_px": 0.0, "complement": False, "noise_difference": None,
}  # fmt: skip


class Finder:
    """Finds a phrase of n letters at x = n; 'nothing' nowhere. Remembers how many pictures it saw at once."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def detect(
        self, images: torch.Tensor, phrases: Sequence[Sequence[str]], threshold: float, nms_iou: float
    ) -> list[Detections]:
        self.seen.append(len(images))
        found = []
        for image, (phrase,) in zip(images, phrases, strict=True):
            x, y = float(len(phrase)), float(image[0, 0, 0])
            boxes = torch.tensor([[x, y, x + 4, y + 4], [0, 0, 1, 1]])
            n = 0 if phrase == "nothing" else 2
            found.append(Detections(boxes[:n], torch.tensor([0.9, 0.3])[:n], torch.zeros(n, dtype=torch.int64)))
        return found


class Filler:
    """Fills every box."""

    def segment(self, images: torch.Tensor, boxes_px: Sequence[torch.Tensor]) -> list[Masks]:
        out = []
        for boxes in boxes_px:
            filled = torch.zeros(len(boxes), *images.shape[-2:], dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(filled, boxes.int().tolist(), strict=True):
                mask[y0:y1, x0:x1] = True
            out.append(Masks(filled, torch.ones(len(boxes))))
        return out


def found(area: int) -> Found:
    P = torch.zeros(10, 20, dtype=torch.bool)
    P.view(-1)[:area] = True
    return Found(0.9, torch.tensor([0.0, 0, 1, 1]), P)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_every_query_gets_the_place_of_its_own_phrase_in_its_own_picture(batch: int) -> None:
    images = torch.zeros(3, 3, 20, 30)
    images[:, 0, 0, 0] = torch.tensor([1.0, 3.0, 5.0])
    queries = [(0, "star"), (0, "red star"), (1, "nothing"), (2, "nothing"), (2, "ring")]
    finder: Any = Finder()
    filler: Any = Filler()
    got = masks.find(finder, filler, images, queries, BOUNDS, batch)
    assert got[1, "nothing"] is None
    assert got[2, "nothing"] is None
    assert max(finder.seen) <= batch
    for picture, phrase in ((0, "star"), (0, "red star"), (2, "ring")):
        one = got[picture, phrase]
        assert one is not None
        y, x = 1 + 2 * picture, len(phrase)
        assert one.box_px.tolist() == [x, y, x + 4, y + 4]
        assert one.P.sum() == 16
        assert bool(one.P[y : y + 4, x : x + 4].all())
        assert one.score == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("areas", "want"),
    [((20,), 20), ((20, 40), 40), ((1,), "mask_too_small"), ((150,), "mask_too_large"), ((20, None), "not_detected"), ((), 0)],
)
def test_masks_that_cannot_be_trusted_say_why(areas: tuple[int | None, ...], want: int | str) -> None:
    got = masks.union([None if area is None else found(area) for area in areas], torch.zeros(10, 20), BOUNDS)
    assert got == want if isinstance(got, str) else int(got.sum()) == want


def test_the_complement_edits_all_but_the_object_and_its_rim() -> None:
    P = torch.zeros(20, 20, dtype=torch.bool)
    P[8:12, 8:12] = True
    M = MaskRecipe(**(PRECISE | {"w_p": 0.0, "w_s": 1.0, "radius_px": 2.0, "complement": True})).soft(P)
    assert M.shape == (1, 20, 20)
    assert M[0, 6:14, 9:11].max() == 0
    assert M[0, 0].min() == 1
    plain = MaskRecipe(**PRECISE).soft(P)
    assert_close(plain[0], P.float())


def test_weights_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"must sum to 1, got 0.5, 0.0, 0.0"):
        MaskRecipe(**(PRECISE | {"w_p": 0.5}))


@pytest.mark.parametrize(
    ("words", "want"), [(None, ()), ("", ()), ("red star", ("red star",)), ("a star, a ring", ("a star", "a ring"))]
)
def test_phrases(words: str | None, want: tuple[str, ...]) -> None:
    assert masks.phrases(words) == want
