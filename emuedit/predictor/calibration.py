"""Calibrated probabilities of classifiers: their weights, expected calibration error, and refusal threshold.

Shapes: N texts, L classes, E experts (classifiers of the same classes). Fit on texts that the classifiers were not trained on;
evaluate on a third set.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

N_BINS = 10
MIN_WEIGHT, MAX_WEIGHT = 0.05, 7.5


def fit_weights(logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Weights in [MIN_WEIGHT, MAX_WEIGHT] of E experts, with the lowest cross-entropy of softmax(sum of weight * logits).

    For a single expert, 1 / weight is its temperature (Guo et al. 2017, arXiv 1706.04599, section 4.2); several are a product of
    experts (Hinton 1999) with fitted exponents. logits float [E, N, L]; labels int [N], the true classes. Without texts
    all weights are 1 / E.
    """
    n_experts = len(logits)
    if not len(labels):
        return (1 / n_experts,) * n_experts
    logits = logits.double()

    def loss_and_gradient(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        w = torch.tensor(weights, requires_grad=True)
        with torch.enable_grad():
            loss = F.cross_entropy(torch.einsum("e,enl->nl", w, logits), labels)
        (gradient,) = torch.autograd.grad(loss, w)
        return loss.item(), gradient.numpy()

    start, bounds = np.full(n_experts, 1 / n_experts), [(MIN_WEIGHT, MAX_WEIGHT)] * n_experts
    fitted = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds)  # convex in the weights
    return tuple(fitted.x.tolist())


def calibration_error(confidence: Tensor, correct: Tensor, n_bins: int = N_BINS) -> float:
    """Expected calibration error in [0, 1]: mean gap between confidence and accuracy over equal-width bins.

    Guo et al. 2017, equation 3. confidence: float [N] in [0, 1], of the predicted class; correct: bool or 0/1 [N].
    """
    correct = correct.float()
    bins = (confidence * n_bins).long().clamp_max(n_bins - 1)
    gaps = [(correct[bins == b].mean() - confidence[bins == b].mean()).abs() * (bins == b).float().mean() for b in bins.unique()]
    return float(torch.stack(gaps).sum()) if gaps else 0.0


def refusal_threshold(support_of_instructions: Tensor, max_refused: float) -> float:
    """The largest threshold that refuses at most the share `max_refused` of true instructions. Ours.

    support_of_instructions float [N] in [0, 1]: the summed probability of all tasks. max_refused in [0, 1).
    """
    if not len(support_of_instructions):
        return 0.0
    ordered = support_of_instructions.double().sort().values
    return float(ordered[int(max_refused * len(ordered))])


def measure(p: Tensor, labels: Tensor, tasks: Sequence[str]) -> dict[str, Any]:
    """Accuracy overall and per task, expected calibration error, and confusion[true][predicted].

    p float [N, K]: probabilities of the tasks, scaled here to a sum of 1, since all N texts are instructions; labels int [N]: the
    right ones.
    """
    confidence, predicted = (p / p.sum(-1, keepdim=True)).max(-1)
    correct = predicted == labels
    confusion: dict[str, dict[str, int]] = {}
    for guess, label in zip(predicted.tolist(), labels.tolist(), strict=True):
        row = confusion.setdefault(tasks[label], {})
        row[tasks[guess]] = row.get(tasks[guess], 0) + 1
    return {
        "accuracy": float(correct.float().mean()),
        "calibration_error": calibration_error(confidence, correct),
        "n": len(labels),
        "tasks": {task: row.get(task, 0) / sum(row.values()) for task, row in sorted(confusion.items())},
        "confusion": {task: dict(sorted(row.items())) for task, row in sorted(confusion.items())},
    }
