"""The judge of edits of real images on networks that are replaced by simple features."""

from typing import Any

import numpy as np
import pytest
import torch

from emuedit.data.image_io import Pixels
from emuedit.metrics.similarity_judge import (
    Calibration,
    Floats,
    JudgeBounds,
    Measures,
    ResultError,
    SimilarityJudge,
    calibrate_bounds,
)

N = 8


class FirstPixel:
    """Replaces CLIP and DINO: an image is a direction with its first red value in degrees; "a" is east, "b" north."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        angles = ((images[:, 0, 0, 0] + 1) * 127.5).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], 1)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0] if text == "a" else [0.0, 1.0] for text in texts])


def make_judge() -> SimilarityJudge:
    scorer: Any = FirstPixel()
    return SimilarityJudge(scorer, scorer, JudgeBounds())


def of_degrees(degrees: list[int]) -> Pixels:
    return np.broadcast_to(np.array(degrees, np.uint8)[:, None, None, None], (len(degrees), 8, 8, 3)).copy()


def photographs() -> Pixels:
    return np.random.default_rng(0).integers(40, 200, (15, 32, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["brighter by a factor", "brighter by a value", "with a few pixels that differ much"])
def test_a_mild_filter_must_be_applied(kind: str) -> None:
    """No pixel of these references differs by MIN_CHANGE, or too few do, and unedited and opposite results were accepted."""
    before = photographs()
    results = np.round(before * 1.08).astype(np.uint8) if "factor" in kind else (before + 20).astype(np.uint8)
    if "few" in kind:
        results[:, 0, :2] = before[:, 0, :2] + 30
    opposite = (2 * before.astype(np.int16) - results).astype(np.uint8)
    captions = (["a"] * len(before), ["a"] * len(before))

    def accepted(after: Pixels) -> float:
        return float(make_judge().judge("color", before, after, captions, list(results)).success.mean())

    assert accepted(before) == 0
    assert accepted(opposite) == 0
    assert accepted(results) == 1
    assert accepted(((before + 3.0 * results) / 4).astype(np.uint8)) == 1, "three quarters of the change"


def test_noise_of_compression_does_not_hide_a_thin_box() -> None:
    """The box covers less than 0.5 % of the image, the noise of the reference all of it."""
    rng = np.random.default_rng(0)
    before = rng.integers(40, 200, (256, 256, 3)).astype(np.uint8)
    boxed = before.copy()
    boxed[100:120, 100] = boxed[100:120, 140] = boxed[100, 100:140] = boxed[119, 100:140] = (255, 0, 255)
    reference = np.clip(boxed + rng.normal(0, 2, boxed.shape), 0, 255).astype(np.uint8)
    assert ResultError.of(before, boxed, reference).objection(JudgeBounds()) == ""
    assert "remaining difference" in ResultError.of(before, before, reference).objection(JudgeBounds())


def test_a_reference_that_equals_its_input_is_named() -> None:
    before = photographs()[:1]
    verdicts = make_judge().judge("color", before, before, (["a"], ["a"]), list(before))
    assert verdicts.reason == ("the reference result equals the input: it cannot be judged",)


def calibrate(before: list[int], exact: list[int]) -> Calibration:
    n = len(before)
    return make_judge().calibrate("local", of_degrees(before), of_degrees(exact), (["a"] * n, ["b"] * n))


def measures(gain: float, dino: float = 1.0, left: float | None = None) -> Measures:
    """Of N equal outputs. left: the remaining difference to the reference result; None: there is none."""
    error = None if left is None else ResultError(0.0, left)
    return Measures(np.full(N, gain), np.full(N, dino), [error] * N)


def test_unchanged_images_are_among_the_wrong_ones() -> None:
    """Other edits' results have negative gains, so a bound below 0 separated them best, and accepted unchanged images."""
    calibration = calibrate_bounds("local", JudgeBounds(), measures(0.02, 0.9), measures(-0.05), measures(0.0))
    assert calibration.bounds == JudgeBounds(min_gain=0.01, min_dino=0.9)
    assert (calibration.right, calibration.unrelated, calibration.unchanged) == (1, 0, 0)
    assert calibration.separates


def calibrate_gains(right: Floats, unrelated: Floats, dino: Floats) -> Calibration:
    """Of edits of a task that is judged by captions, and of unchanged images."""
    errors, n = [None] * len(right), len(right)
    return calibrate_bounds(
        "local",
        JudgeBounds(),
        Measures(right, dino, errors),
        Measures(unrelated, np.full(n, np.inf), errors),
        Measures(np.zeros(n), np.ones(n), errors),
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 8, 16])
def test_a_judge_that_cannot_tell_results_apart_rarely_separates(n: int) -> None:
    """Shares under a threshold chosen on the same edits exceeded MIN_MARGIN in 0.48, 0.38 and 0.25 of such runs."""
    rng = np.random.default_rng(1)
    gains, dino = rng.normal(0.06, 0.06, (100, 2, n)), rng.uniform(0.6, 0.99, (100, n))
    runs = [calibrate_gains(right, unrelated, cosines) for (right, unrelated), cosines in zip(gains, dino, strict=True)]
    assert np.mean([calibration.separates for calibration in runs]) < 0.1


def test_four_edits_that_are_clearly_better_separate() -> None:
    """The least similar result is below the DINO bound of the others, so at most three of the four are accepted."""
    right, unrelated = np.array([0.20, 0.25, 0.30, 0.22]), np.array([-0.05, 0.02, 0.0, 0.04])
    calibration = calibrate_gains(right, unrelated, np.array([0.9, 0.8, 0.85, 0.95]))
    assert (calibration.right, calibration.unrelated, calibration.unchanged) == (0.75, 0, 0)
    assert calibration.separates


def test_each_edit_is_judged_by_bounds_of_the_others_and_all_edits_set_the_written_ones() -> None:
    """The edit with the lowest gain is accepted only by bounds that it was part of."""
    right, unrelated = np.array([0.10, 0.30, 0.32, 0.34, 0.36, 0.38]), np.full(6, 0.02)
    calibration = calibrate_gains(right, unrelated, np.full(6, 0.9))
    assert (calibration.bounds.min_gain, calibration.bounds.min_dino) == pytest.approx((0.06, 0.9))
    assert calibration.right == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("right", "unrelated", "n", "separates"),
    [
        (0.6, 0.4, 200, True),  # 0.6 - 0.4 is rounded to less than 0.2
        (0.59, 0.4, 200, False),  # significant, but too small
        (0.6, 0.3, 10, False),  # large enough, but by chance in more than 5 %
        (0.6, 0.3, 20, True),
    ],
)
def test_a_separation_is_large_enough_and_significant(right: float, unrelated: float, n: int, separates: bool) -> None:
    assert Calibration("local", JudgeBounds(), right, unrelated, 0.0, n).separates == separates
    assert Calibration("local", JudgeBounds(), right, 0.0, unrelated, n).separates == separates


def test_shares_of_an_annotated_task_are_those_near_the_reference_results() -> None:
    """The gains, which do not describe its edits, would reject the right ones and accept the unrelated ones."""
    right, unrelated, unchanged = measures(-0.5, left=0.0), measures(0.5, left=0.9), measures(0.0, left=1.0)
    calibration = calibrate_bounds("detect", JudgeBounds(), right, unrelated, unchanged)
    assert (calibration.right, calibration.unrelated, calibration.unchanged) == (1, 0, 0)


def test_images_and_captions_are_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks take nearly all of the time of a calibration."""
    sizes: list[int] = []
    embed_images, embed_texts = FirstPixel.embed_images, FirstPixel.embed_texts

    def count_images(scorer: FirstPixel, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return embed_images(scorer, images)

    def count_texts(scorer: FirstPixel, texts: list[str]) -> torch.Tensor:
        sizes.append(len(texts))
        return embed_texts(scorer, texts)

    monkeypatch.setattr(FirstPixel, "embed_images", count_images)
    monkeypatch.setattr(FirstPixel, "embed_texts", count_texts)
    calibrate([10] * N, [40] * N)
    assert sum(sizes) == 6 * N, "inputs and results by CLIP and DINO, both captions by CLIP"


def test_results_like_those_of_other_edits_do_not_separate() -> None:
    calibration = calibrate([10] * N, [40] * N)  # each result is also that of every other edit
    assert calibration.bounds.min_gain > 0
    assert calibration.right == calibration.unrelated
    assert not calibration.separates


def test_results_without_a_gain_give_a_bound_that_refuses_unchanged_images() -> None:
    calibration = calibrate([10, 20, 30, 40] * 2, [10, 20, 30, 40] * 2)
    assert calibration.bounds.min_gain > 0
    assert calibration.unchanged == 0
    assert not calibration.separates
