from collections.abc import Sequence
from typing import Any

import pytest
import torch

from emuedit.models.detector import Detections
from emuedit.synthesis import pair_scores as scores
from emuedit.synthesis.pair_scores import Edit, Scorers

WORDS = {"red": [1.0, 0, 0], "green": [0, 1.0, 0], "blue": [0, 0, 1.0]}


class Eye:
    """Sees the mean colour of a picture, and reads a text as a colour."""

    def __init__(self) -> None:
        self.calls = 0

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.nn.functional.normalize((images + 1).mean((2, 3)) + 1e-3, dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([WORDS[text] for text in texts])

    def depth(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0] + 1) / 2


class Finder:
    """Finds a phrase as well as the picture has its colour."""

    def detect(
        self, images: torch.Tensor, phrases: Sequence[Sequence[str]], threshold: float, nms_iou: float
    ) -> list[Detections]:
        found = []
        for image, asked in zip(images, phrases, strict=True):
            seen = torch.stack([((image[list(WORDS).index(phrase)] + 1) / 2) for phrase in asked])  # [N, H, W]
            scores, which = seen.mean((1, 2)).sort(descending=True)
            boxes = torch.stack([self.around(seen[k] > 0) for k in which])
            some = scores > 0
            found.append(Detections(boxes[some], scores[some], which[some]))
        return found

    def around(self, here: torch.Tensor) -> torch.Tensor:
        y, x = here.nonzero(as_tuple=True)
        return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0] * 4, dtype=torch.float32)


@pytest.fixture
def judges() -> Any:
    eye: Any = Eye()
    finder: Any = Finder()
    return Scorers(eye, eye, eye, finder)


def pictures() -> torch.Tensor:
    """Red; red with its left half green."""
    red = torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 4, 6).clone()
    half = red.clone()
    half[:, :, :3] = torch.tensor([-1.0, 1, -1])[:, None, None]
    return torch.stack([red, half])


def edit(source: int = 0, target: int = 1, **changes: Any) -> Edit:
    M = torch.zeros(1, 4, 6)
    M[..., :2] = 1
    M[..., 2] = 0.5
    how: dict[str, Any] = {"M": M, "source_caption": "red", "target_caption": "green"}
    return Edit(source, target, **(how | {"source_object": "red", "target_object": "green"} | changes))


def test_numbers_of_a_known_edit(judges: Scorers) -> None:
    (got,) = scores.raw(pictures(), [edit()], judges, batch=8)
    assert got["mask_area"] == pytest.approx(2.5 / 6)
    # two of three channels turn round over the left three columns: 2/3 there
    assert got["l1_inside"] == pytest.approx(2 / 3)
    assert got["l1_outside"] == pytest.approx((0.5 * 2 / 3) / 3.5)
    assert got["depth_l1"] == pytest.approx(0.5)
    assert got["present_source"] == pytest.approx(0.5)
    assert got["present_target"] == pytest.approx(0.5)
    assert got["found_source"] == 1
    assert got["left_inside"] is None
    assert got["clip_direction"] is not None
    assert got["clip_direction"] > 0.9
    assert got["clip_source"] == pytest.approx(1, abs=1e-3)
    assert got["clip_target"] == pytest.approx(0.5**0.5, abs=1e-2)
    assert got["shift_px"] is None  # one colour: it may have moved anywhere


def test_a_shift_counts_outside_of_the_mask(judges: Scorers) -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    still, moved = (torch.stack([torch.sin(0.7 * (x - d)), torch.cos(0.6 * (y + d)), x * 0]) for d in (0.0, 0.3))
    M = torch.zeros(1, 32, 32)
    M[:, 8:20, 8:20] = 1
    moved[:, 8:20, 8:20] = 0.5
    (got,) = scores.raw(torch.stack([still, moved]), [edit(M=M)], judges, batch=8)
    assert got["shift_px"] == pytest.approx(0.3 * 2**0.5, abs=0.01)


def test_doing_nothing_scores_as_nothing(judges: Scorers) -> None:
    (got,) = scores.raw(pictures(), [edit(target=0)], judges, batch=8)
    assert got["clip_direction"] is None  # an untouched picture has no direction
    assert got["l1_inside"] == got["l1_outside"] == got["depth_l1"] == 0
    assert got["clip_image"] == pytest.approx(1)
    assert got["dino"] == pytest.approx(1)
    assert got["present_target"] == 0


def test_undefined_is_none(judges: Scorers) -> None:
    whole, bare, kept = scores.raw(
        pictures(),
        [
            edit(M=torch.ones(1, 4, 6)),
            edit(M=None, source_object=None, target_object="", target_caption="red"),
            edit(source_object="red, green, blue"),
        ],
        judges,
        batch=1,
    )
    assert whole["l1_outside"] is None
    assert bare["l1_inside"] is bare["l1_outside"] is bare["mask_area"] is None
    assert bare["present_source"] is bare["present_target"] is bare["clip_direction"] is None
    assert kept["present_source"] == 0  # the worst of those that must stay
    assert set(whole) == set(bare)


def test_each_judge_sees_a_picture_once(judges: Scorers) -> None:
    eye: Any = judges.clip
    scores.raw(pictures(), [edit(), edit(1, 0), edit()], judges, batch=2)
    assert eye.calls == 2  # as clip and as dino
    assert scores.raw(pictures(), [], judges, batch=2) == []


def test_what_is_left_where_nothing_should_be(judges: Scorers) -> None:
    """Green stands left, red right; M lies left."""
    after, before, elsewhere = scores.raw(
        pictures(),
        [
            edit(target_object=None, vacant=1),  # nothing should be left of the red thing, but something green is
            edit(0, 1, source_object=None, target_object="green", vacant=0),  # built backwards: red covers the middle of M
            edit(target_object=None, vacant=1, M=torch.zeros(1, 4, 6)),
        ],
        judges,
        batch=2,
    )
    assert after["left_inside"] == pytest.approx(0.5)
    assert before["left_inside"] == 0  # the only box has its centre where M is 0
    assert elsewhere["left_inside"] == 0


def test_pieces_of_a_caption_are_what_it_may_name() -> None:
    said = "a big red star on the left, a blue ring and a person with arms up, a blue ring in the sand"
    assert scores.named(said) == ["a big red star", "the left", "a blue ring", "a person", "arms up", "the sand"]
