from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.data.image_io import Pixels
from emuedit.data.png import decode_png
from emuedit.metrics.benchmark import Benchmark
from emuedit.metrics.edit_scores import METRICS, evaluate_system
from emuedit.models import clip, dino

WEIGHTS = Path(__file__).parents[2] / "toyworld/weights"
Scorers = tuple[clip.ClipScorer, dino.DinoScorer]
ToyEdits = Callable[..., Benchmark]


@pytest.fixture(scope="module")
def scorers() -> Scorers:
    return clip.load(str(WEIGHTS / "clip")), dino.load(str(WEIGHTS / "dino"))


class WithoutResults:
    """Edits that a judge can assess, but whose right results are not known."""

    exact = None

    def __init__(self, edits: Benchmark) -> None:
        self.edits = edits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.edits, name)


def do_nothing(edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
    return edits.before, [edits.task] * len(seeds)


def answer_exactly(edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
    return edits.exact, ["local"] * len(seeds)


@pytest.mark.slow
def test_doing_nothing_keeps_the_picture_and_has_no_direction(toy_edits: ToyEdits, scorers: Scorers) -> None:
    records = evaluate_system("identity", do_nothing, toy_edits("remove"), scorers, 0)
    assert len(records) == 6
    for record in records:
        assert not record.success
        assert record.reason
        assert record.scores["l1"] == 0.0
        assert [record.scores[name] for name in ("clip_im", "dino")] == pytest.approx([1.0, 1.0], abs=5e-5)
        assert record.scores["clip_dir"] is None


@pytest.mark.slow
def test_the_exact_result_succeeds_and_moves_towards_its_caption(toy_edits: ToyEdits, scorers: Scorers) -> None:
    records = evaluate_system("exact", answer_exactly, toy_edits("background"), scorers, 0)
    assert all(record.success and not record.reason for record in records)
    directions = [record.scores["clip_dir"] for record in records]
    assert np.mean([direction for direction in directions if direction is not None]) > 0.3
    assert 0 < np.mean([record.scores["l1"] or 0 for record in records]) < 0.5


@pytest.mark.slow
def test_metrics_of_groups_are_those_of_all_edits(toy_edits: ToyEdits, scorers: Scorers) -> None:
    edits, sizes = toy_edits("background", 5), []
    clip_scorer, dino_scorer = scorers

    class CountingScorer:
        def embed_images(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return dino_scorer.embed_images(images)

    together = evaluate_system("exact", answer_exactly, edits, scorers, 0)
    in_groups = evaluate_system("exact", answer_exactly, edits, (clip_scorer, CountingScorer()), 0, at_once=2)  # type: ignore[arg-type]
    assert sizes == [4, 4, 2], "before and after"
    for group_record, record in zip(in_groups, together, strict=True):
        assert group_record.scores == pytest.approx(record.scores, abs=1e-5)
        assert replace(group_record, scores=record.scores) == record


@pytest.mark.slow
def test_a_pass_measures_at_most_32_edits(toy_edits: ToyEdits, scorers: Scorers) -> None:
    """All edits of a task were one pass: 512 at 512 px did not fit in memory."""
    edits, sizes = toy_edits("background", 40), []

    class RecordingScorer:
        def __init__(self, scorer: clip.ClipScorer | dino.DinoScorer) -> None:
            self.scorer = scorer

        def embed_images(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return self.scorer.embed_images(images)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.scorer, name)

    recording = (RecordingScorer(scorers[0]), RecordingScorer(scorers[1]))
    records = evaluate_system("exact", answer_exactly, edits, recording, 0)  # type: ignore[arg-type]
    assert sizes == [64, 64, 16, 16], "before and after, CLIP and DINO"
    together = evaluate_system("exact", answer_exactly, edits, scorers, 0, at_once=40)
    for record, reference in zip(records, together, strict=True):
        assert record.scores == pytest.approx(reference.scores, abs=1e-5)


def test_a_record_holds_the_edit_the_output_and_the_task_that_was_used(toy_edits: ToyEdits, scorers: Scorers) -> None:
    edits = toy_edits("add", 2)
    records = evaluate_system("exact", answer_exactly, edits, scorers, 0)
    for i, record in enumerate(records):
        assert (record.system, record.task, record.given_task) == ("exact", "add", "local")
        assert record.instruction == edits.instructions[i]
        assert (record.source_caption, record.target_caption) == (edits.input_captions[i], edits.output_captions[i])
        np.testing.assert_array_equal(decode_png(record.source), edits.before[i])
        np.testing.assert_array_equal(decode_png(record.output), edits.exact[i])
        assert record.exact is not None
        np.testing.assert_array_equal(decode_png(record.exact), edits.exact[i])
        assert record.scores.keys() == METRICS.keys()


def test_a_benchmark_need_not_know_the_right_results(toy_edits: ToyEdits, scorers: Scorers) -> None:
    (record,) = evaluate_system("identity", do_nothing, WithoutResults(toy_edits("remove", 1)), scorers, 0)
    assert record.exact is None
    assert record.reason


@pytest.mark.slow
def test_seeds_depend_on_the_edit_and_not_on_the_system(toy_edits: ToyEdits, scorers: Scorers) -> None:
    edits = toy_edits("add", 2)
    received: list[list[int]] = []

    def keep_seeds(edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
        received.append(seeds)
        return do_nothing(edits, seeds)

    first, second = (evaluate_system(name, keep_seeds, edits, scorers, 3) for name in ("a", "b"))
    assert [record.seed for record in first] == [record.seed for record in second] == received[0] == received[1]
    assert len({record.seed for record in first}) == 2
    assert replace(first[0], system="b").id == second[0].id
    (shorter,) = evaluate_system("a", do_nothing, toy_edits("add", 1), scorers, 3)
    assert shorter.seed == first[0].seed, "the number of edits must not matter"
    for other in (
        evaluate_system("a", do_nothing, edits, scorers, 4),
        evaluate_system("a", do_nothing, toy_edits("remove", 2), scorers, 3),
    ):
        assert {record.seed for record in other}.isdisjoint(record.seed for record in first)


def test_reference_results_are_read_once(toy_edits: ToyEdits) -> None:
    """A benchmark of photographs stacks all of them each time."""
    reads: list[int] = []

    class CountingEdits(WithoutResults):
        @property
        def exact(self) -> Pixels:  # type: ignore[override]
            reads.append(1)
            return self.edits.exact

    records = evaluate_system("identity", do_nothing, CountingEdits(toy_edits("remove")), None, 0)
    assert all(record.exact for record in records)
    assert len(records) > len(reads) == 1
