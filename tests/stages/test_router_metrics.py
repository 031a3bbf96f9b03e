"""What the stage `router` measures is not measured on what it was fitted to."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.predictor.calibration import fit_weights, refusal_threshold
from emuedit.predictor.cross_fitting import Example, read_out_of_fold
from emuedit.predictor.task_predictor import NO_EDIT
from emuedit.stages.router import RouterParams, combine, cross_fit
from tests.stages.workspace import load_params

pytestmark = pytest.mark.slow
TASKS = ("remove", "sketch")
N = 60
"""Instructions per fold; half as many texts are no instructions."""


class Predictor(SimpleNamespace):
    tasks = TASKS
    labels = (*TASKS, NO_EDIT)
    temperature = ngram_weight = min_support = 0.0

    def calibrate(self, temperature: float, min_support: float, ngram_weight: float) -> None:
        self.temperature, self.min_support, self.ngram_weight = temperature, min_support, ngram_weight


def cross_fitted(tmp_path: Path, lower: float) -> tuple[dict[str, Any], torch.Tensor, list[Example]]:
    """The metrics, logits [2, n, 3] and examples of three folds. lower: added to the logits of the tasks in the last fold."""
    params = load_params(RouterParams, "router", folds=3, max_refused=0.05)
    examples = [Example(f"text {fold} {i}", Predictor.labels[i % 5 // 2], fold) for fold in range(3) for i in range(N * 5 // 4)]
    labels = torch.tensor([Predictor.labels.index(example.label) for example in examples])
    logits = torch.randn(2, len(examples), 3, generator=torch.Generator().manual_seed(0))
    logits += 2 * torch.nn.functional.one_hot(labels, 3)
    logits[:, [example.fold == 2 for example in examples], :2] += lower
    predictor: Any = Predictor()
    return cross_fit(predictor, logits, examples, params, tmp_path), logits, examples


def test_a_fold_with_lower_support_than_the_others_is_refused_more_often(tmp_path: Path) -> None:
    """A threshold that is fitted to all folds refuses at most `max_refused` of them by construction."""
    metrics, _, _ = cross_fitted(tmp_path, lower=-2.0)
    assert metrics["refused_instructions"] > 2 * 0.05
    assert metrics["refused_instructions"] < metrics["refused_non_instructions"]


def test_the_refusals_of_a_fold_are_those_of_the_weights_and_threshold_of_the_others(tmp_path: Path) -> None:
    metrics, logits, examples = cross_fitted(tmp_path, lower=-1.0)
    labels = torch.tensor([Predictor.labels.index(example.label) for example in examples])
    refused: dict[bool, list[bool]] = {True: [], False: []}
    for fold in range(3):
        outside = torch.tensor([example.fold != fold for example in examples])
        support = combine(logits, fit_weights(logits[:, outside], labels[outside]))[:, :2].sum(-1)
        threshold = refusal_threshold(support[outside & (labels < 2)], 0.05)
        for row in torch.nonzero(~outside).flatten().tolist():
            refused[bool(labels[row] < 2)].append(bool(support[row] < threshold))
    for name, is_instruction in (("refused_instructions", True), ("refused_non_instructions", False)):
        assert metrics[name] == pytest.approx(sum(refused[is_instruction]) / len(refused[is_instruction]))


def test_the_published_weights_and_threshold_are_fitted_to_all_folds(tmp_path: Path) -> None:
    metrics, logits, examples = cross_fitted(tmp_path, lower=-1.0)
    labels = torch.tensor([Predictor.labels.index(example.label) for example in examples])
    weights = fit_weights(logits, labels)
    p = combine(logits, weights)[:, :2]
    assert (metrics["temperature"], metrics["ngram_weight"]) == (1 / weights[0], weights[1])
    assert metrics["min_support"] == refusal_threshold(p.sum(-1)[labels < 2], 0.05)
    stored, is_instruction = read_out_of_fold(tmp_path, TASKS), labels < 2
    assert list(stored) == [example.text for example in examples if example.label != NO_EDIT]
    assert np.stack(list(stored.values())) == pytest.approx(p[is_instruction].numpy())
