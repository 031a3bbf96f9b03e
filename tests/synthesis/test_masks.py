from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from emuedit.models.detector import Detections
from emuedit.synthesis import masks
from emuedit.synthesis.masks import DetectionLimits, LocatedObject, MaskParams
from emuedit.synthesis.rejection import Rejected
from tests.synthesis.fake_segmenter import FakeSegmenter

LIMITS = DetectionLimits(threshold=0.2, nms_iou=0.5, min_area=0.01, max_area=0.5)
PRECISE: dict[str, Any] = {
    "w_p": 1.0, "w_s": 0.0, "w_b": 0.0, "radius_px": 0.0, "sigma_px": 0.0, "complement": False, "noise_difference": None,
}  # fmt: skip


class FakeDetector:
    """Detects a phrase of n letters at x = n, except for 'nothing'. Records the batch sizes."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def detect(
        self, images: torch.Tensor, phrases: Sequence[Sequence[str]], threshold: float, nms_iou: float
    ) -> list[Detections]:
        self.batch_sizes.append(len(images))
        detections = []
        for image, (phrase,) in zip(images, phrases, strict=True):
            x, y = float(len(phrase)), float(image[0, 0, 0])
            boxes = torch.tensor([[x, y, x + 4, y + 4], [0, 0, 1, 1]])
            n = 0 if phrase == "nothing" else 2
            detections.append(Detections(boxes[:n], torch.tensor([0.9, 0.3])[:n], torch.zeros(n, dtype=torch.int64)))
        return detections


def object_of_area(area_px: int) -> LocatedObject:
    P = torch.zeros(10, 20, dtype=torch.bool)
    P.view(-1)[:area_px] = True
    return LocatedObject(0.9, torch.tensor([0.0, 0, 1, 1]), P)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_every_query_gets_the_object_of_its_phrase_in_its_image(batch: int) -> None:
    images = torch.zeros(3, 3, 20, 30)
    images[:, 0, 0, 0] = torch.tensor([1.0, 3.0, 5.0])
    queries = [(0, "star"), (0, "red star"), (1, "nothing"), (2, "nothing"), (2, "ring")]
    detector: Any = FakeDetector()
    segmenter: Any = FakeSegmenter()
    located = masks.locate_objects(detector, segmenter, images, queries, LIMITS, batch)
    assert located[1, "nothing"] is None
    assert located[2, "nothing"] is None
    assert max(detector.batch_sizes) <= batch
    for image, phrase in ((0, "star"), (0, "red star"), (2, "ring")):
        found_object = located[image, phrase]
        assert found_object is not None
        y, x = 1 + 2 * image, len(phrase)
        assert found_object.box_px.tolist() == [x, y, x + 4, y + 4]
        assert found_object.P.sum() == 16
        assert bool(found_object.P[y : y + 4, x : x + 4].all())
        assert found_object.score == pytest.approx(0.9)


def test_all_instances_of_a_phrase_are_in_the_mask_where_a_task_wants_them() -> None:
    """ "remove the chairs" of two chairs; a background keeps both dogs."""
    images, queries = torch.zeros(2, 3, 20, 30), [(0, "star"), (1, "nothing"), (1, "ring")]
    detector, segmenter = FakeDetector(), FakeSegmenter()
    located = masks.locate_objects(detector, segmenter, images, queries, LIMITS, 2, {queries[0], queries[1]})  # type: ignore[arg-type]
    star, ring = located[queries[0]], located[queries[2]]
    assert located[queries[1]] is None
    assert star is not None
    assert ring is not None
    assert (int(star.P.sum()), ring.P_all) == (16, None)
    assert star.P_all is not None
    assert star.P_all.nonzero().tolist() == sorted([*star.P.nonzero().tolist(), [0, 0]])
    like = torch.zeros(20, 30)
    best, united = (masks.union_mask([star], like, LIMITS, all_instances) for all_instances in (False, True))
    assert isinstance(best, torch.Tensor)
    assert isinstance(united, torch.Tensor)
    assert torch.equal(best, star.P)
    assert torch.equal(united, star.P_all)


@pytest.mark.parametrize(
    ("areas_px", "expected"),
    [
        ((20,), 20),
        ((20, 40), 40),
        ((1,), Rejected("mask_too_small")),
        ((150,), Rejected("mask_too_large")),
        ((20, None), Rejected("not_detected")),
        ((), 0),
    ],
)
def test_the_union_has_the_area_of_all_objects_or_is_rejected(areas_px: tuple[int | None, ...], expected: int | Rejected) -> None:
    objects = [None if area_px is None else object_of_area(area_px) for area_px in areas_px]
    P = masks.union_mask(objects, torch.zeros(10, 20), LIMITS)
    assert (P if isinstance(P, Rejected) else int(P.sum())) == expected


@pytest.mark.parametrize(("area_px", "accepted"), [(1, False), (3, True), (150, True), (197, True), (199, False)])
def test_objects_whose_background_is_edited_may_fill_the_image_up_to_a_rest(area_px: int, accepted: bool) -> None:
    """A close-up; the rest must have `min_area`, here 2 px of 200."""
    P = masks.union_mask([object_of_area(area_px)], torch.zeros(10, 20), LIMITS, edits_complement=True)
    assert isinstance(P, torch.Tensor) == accepted


def test_the_complement_excludes_the_object_and_its_border() -> None:
    P = torch.zeros(20, 20, dtype=torch.bool)
    P[8:12, 8:12] = True
    M = MaskParams(**(PRECISE | {"w_p": 0.0, "w_s": 1.0, "radius_px": 2.0, "complement": True})).soft_mask(P)
    assert M.shape == (1, 20, 20)
    assert M[0, 6:14, 9:11].max() == 0
    assert M[0, 0].min() == 1
    precise = MaskParams(**PRECISE).soft_mask(P)
    assert_close(precise[0], P.float())


def test_weights_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"must sum to 1, got 0.5, 0.0, 0.0"):
        MaskParams(**(PRECISE | {"w_p": 0.5}))


@pytest.mark.parametrize(
    ("objects", "phrases"), [(None, ()), ("", ()), ("red star", ("red star",)), ("a star, a ring", ("a star", "a ring"))]
)
def test_split_phrases(objects: str | None, phrases: tuple[str, ...]) -> None:
    assert masks.split_phrases(objects) == phrases
