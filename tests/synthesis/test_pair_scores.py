from collections.abc import Sequence
from typing import Any

import pytest
import torch

from emuedit.models.detector import Detections
from emuedit.synthesis import pair_scores
from emuedit.synthesis.pair_scores import ScoredEdit, Scorers

COLOURS = {"red": [1.0, 0, 0], "green": [0, 1.0, 0], "blue": [0, 0, 1.0]}


class FakeEncoder:
    """Embeds an image as its mean colour and a text as the colour that it names. Depth is the red channel."""

    def __init__(self) -> None:
        self.n_calls = 0

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        self.n_calls += 1
        return torch.nn.functional.normalize((images + 1).mean((2, 3)) + 1e-3, dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([COLOURS[text] for text in texts])

    def depth(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0] + 1) / 2


class FakeDetector:
    """Detects a colour with the colour's share of the image as its score."""

    def detect(
        self, images: torch.Tensor, phrases: Sequence[Sequence[str]], threshold: float, nms_iou: float | None = None
    ) -> list[Detections]:
        assert nms_iou is None, "only the best score counts, so suppression would cost time for nothing"
        detections = []
        for image, image_phrases in zip(images, phrases, strict=True):
            channels = torch.stack([((image[list(COLOURS).index(phrase)] + 1) / 2) for phrase in image_phrases])  # [N, H, W]
            scores, order = channels.mean((1, 2)).sort(descending=True)
            boxes = torch.stack([self.bounding_box(channels[k] > 0) for k in order])
            detected = scores > 0
            detections.append(Detections(boxes[detected], scores[detected], order[detected]))
        return detections

    def bounding_box(self, mask: torch.Tensor) -> torch.Tensor:
        y, x = mask.nonzero(as_tuple=True)
        return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0] * 4, dtype=torch.float32)


@pytest.fixture
def scorers() -> Any:
    encoder: Any = FakeEncoder()
    detector: Any = FakeDetector()
    return Scorers(encoder, encoder, encoder, detector)


def two_images() -> torch.Tensor:
    """A red image, and a red image whose left half is green."""
    red = torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 4, 6).clone()
    half_green = red.clone()
    half_green[:, :, :3] = torch.tensor([-1.0, 1, -1])[:, None, None]
    return torch.stack([red, half_green])


def make_edit(source: int = 0, target: int = 1, **changes: Any) -> ScoredEdit:
    M = torch.zeros(1, 4, 6)
    M[..., :2] = 1
    M[..., 2] = 0.5
    fields: dict[str, Any] = {"M": M, "source_caption": "red", "target_caption": "green"}
    return ScoredEdit(source, target, **(fields | {"source_object": "red", "target_object": "green"} | changes))


def test_scores_of_a_known_edit(scorers: Scorers) -> None:
    (scores,) = pair_scores.score_pairs(two_images(), [make_edit()], scorers, batch=8)
    assert scores["mask_area"] == pytest.approx(2.5 / 6)
    # two of three channels are inverted in the left three columns: 2/3 there
    assert scores["l1_inside"] == pytest.approx(2 / 3)
    assert scores["l1_outside"] == pytest.approx((0.5 * 2 / 3) / 3.5)
    assert scores["depth_l1"] == pytest.approx(0.5)
    assert scores["source_object_after"] == pytest.approx(0.5)
    assert scores["target_object_after"] == pytest.approx(0.5)
    assert scores["source_object_before"] == 1
    assert scores["object_left_in_mask"] is None
    assert scores["clip_direction"] is not None
    assert scores["clip_direction"] > 0.9
    assert scores["clip_source"] == pytest.approx(1, abs=1e-3)
    assert scores["clip_target"] == pytest.approx(0.5**0.5, abs=1e-2)
    assert scores["shift_px"] is None  # an image of one colour has no defined shift


def test_the_shift_is_measured_outside_the_mask(scorers: Scorers) -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    source, shifted = (torch.stack([torch.sin(0.7 * (x - d)), torch.cos(0.6 * (y + d)), x * 0]) for d in (0.0, 0.3))
    M = torch.zeros(1, 32, 32)
    M[:, 8:20, 8:20] = 1
    shifted[:, 8:20, 8:20] = 0.5
    (scores,) = pair_scores.score_pairs(torch.stack([source, shifted]), [make_edit(M=M)], scorers, batch=8)
    assert scores["shift_px"] == pytest.approx(0.3 * 2**0.5, abs=0.01)


def test_the_shift_of_large_pictures_is_estimated_on_smaller_ones(scorers: Scorers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took 2.5 to 4.4 s a pair of 1024 px; the result is in px of the pictures all the same."""
    sizes: list[tuple[int, ...]] = []
    estimate = pair_scores.estimate_shift
    monkeypatch.setattr(pair_scores, "estimate_shift", lambda *images: (sizes.append(images[0].shape), estimate(*images))[1])
    y, x = torch.meshgrid(torch.arange(768.0), torch.arange(512.0), indexing="ij")
    source, shifted = (torch.stack([torch.sin(0.1 * (x - d)), torch.cos(0.09 * (y + d)), x * 0]) for d in (0.0, 1.5))
    M = torch.zeros(1, 768, 512)
    (scores,) = pair_scores.score_pairs(torch.stack([source, shifted]), [make_edit(M=M)], scorers, batch=8)
    assert sizes == [(3, 256, 171)]
    assert scores["shift_px"] == pytest.approx(1.5 * 2**0.5, abs=0.1)


def test_scores_of_an_unchanged_image(scorers: Scorers) -> None:
    (scores,) = pair_scores.score_pairs(two_images(), [make_edit(target=0)], scorers, batch=8)
    assert scores["clip_direction"] is None  # an unchanged image has no direction
    assert scores["l1_inside"] == scores["l1_outside"] == scores["depth_l1"] == 0
    assert scores["clip_image"] == pytest.approx(1)
    assert scores["dino"] == pytest.approx(1)
    assert scores["target_object_after"] == 0


def test_undefined_scores_are_none(scorers: Scorers) -> None:
    full_mask, no_mask, three_objects = pair_scores.score_pairs(
        two_images(),
        [
            make_edit(M=torch.ones(1, 4, 6)),
            make_edit(M=None, source_object=None, target_object="", target_caption="red"),
            make_edit(source_object="red, green, blue"),
        ],
        scorers,
        batch=1,
    )
    assert full_mask["l1_outside"] is None
    assert no_mask["l1_inside"] is no_mask["l1_outside"] is no_mask["mask_area"] is None
    assert no_mask["source_object_after"] is no_mask["target_object_after"] is no_mask["clip_direction"] is None
    assert three_objects["source_object_after"] == 0  # the lowest score of the three objects
    assert set(full_mask) == set(no_mask)


def test_every_image_is_embedded_once(scorers: Scorers) -> None:
    encoder: Any = scorers.clip
    pair_scores.score_pairs(two_images(), [make_edit(), make_edit(1, 0), make_edit()], scorers, batch=2)
    assert encoder.n_calls == 2  # once as CLIP and once as DINO
    assert pair_scores.score_pairs(two_images(), [], scorers, batch=2) == []


def test_left_inside_scores_what_remains_in_the_vacant_image(scorers: Scorers) -> None:
    """Image 1 is green on the left and red on the right; M covers the left."""
    removal, addition, empty_mask = pair_scores.score_pairs(
        two_images(),
        [
            make_edit(target_object=None, vacant=1),  # the red object was removed, but something green is inside M
            make_edit(0, 1, source_object=None, target_object="green", vacant=0),  # red lies outside of M
            make_edit(target_object=None, vacant=1, M=torch.zeros(1, 4, 6)),
        ],
        scorers,
        batch=2,
    )
    assert removal["object_left_in_mask"] == pytest.approx(0.5)
    assert addition["object_left_in_mask"] == 0  # the only box lies where M is 0
    assert empty_mask["object_left_in_mask"] == 0


def test_a_box_counts_as_inside_by_its_area() -> None:
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10:20, 20:30] = True  # the edited object, in the middle of the box of the lake around it
    boxes_px = torch.tensor([[0.0, 0, 60, 40], [20, 10, 30, 20], [21, 11, 29, 23], [0, 0, 1, 1], [25, 10, 36, 20]])
    shares = pair_scores._share_inside(mask, boxes_px)
    torch.testing.assert_close(shares, torch.tensor([100 / 2400, 1, 72 / 96, 0, 50 / 110], dtype=torch.float64))


@pytest.mark.parametrize(
    ("ends", "box_px", "expected"),
    [
        ((20, 43), [20, 20, 44, 44], 0.9),  # a leaning ladder that was not removed
        ((20, 43), [0, 0, 64, 64], 0),  # the house behind it
        ((20, 43), [20, 30, 30, 44], 0),  # a pot beside it
        ((2, 61), [2, 2, 62, 62], 0.9),
        ((2, 61), [0, 0, 64, 64], 0),  # the house again, although the ladder's box is as large
    ],
)
def test_a_sparse_object_is_left_if_its_box_is_that_of_the_mask(
    ends: tuple[int, int], box_px: list[int], expected: float
) -> None:
    class OneBox:
        def detect(self, *_: Any) -> list[Detections]:
            return [Detections(torch.tensor([box_px]).float(), torch.tensor([0.9]), torch.tensor([0]))]

    M = torch.zeros(1, 64, 64)
    diagonal = torch.arange(ends[0], ends[1] + 1)
    M[0, diagonal, diagonal] = 1
    edit, detector = make_edit(M=M, target_object=None, vacant=1), OneBox()
    column = pair_scores.object_left_in_mask(torch.zeros(2, 3, 64, 64), [edit], detector, batch=1)  # type: ignore[arg-type]
    assert column == [pytest.approx(expected)]


def test_every_part_of_a_mask_is_the_place_of_an_object() -> None:
    """Two sparse objects were to be removed, and one is left."""
    mask = torch.zeros(64, 64, dtype=torch.bool)
    diagonal = torch.arange(12)
    mask[4 + diagonal, 4 + diagonal] = mask[40 + diagonal, 51 - diagonal] = True
    boxes_px = torch.tensor([[4.0, 4, 16, 16], [40, 40, 52, 52], [4, 4, 52, 52], [20, 20, 32, 32]])
    assert pair_scores._are_in_mask(mask, boxes_px).tolist() == [True, True, True, False]


def test_caption_phrases_are_the_parts_that_may_name_objects() -> None:
    caption = "a big red star on the left, a blue ring and a person with arms up, a blue ring in the sand"
    phrases = ["a big red star", "the left", "a blue ring", "a person", "arms up", "the sand"]
    assert pair_scores.caption_phrases(caption) == phrases
