"""Calibrated probabilities of a classifier: temperature, expected calibration error, and refusal threshold.

Shapes: N texts, L classes. Fit on texts that the classifier was not trained on; evaluate on a third set.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

N_BINS = 10
_LOG_RANGE = (-2.0, 3.0)
_GRID = 501


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in [0.14, 20] with the lowest cross-entropy of softmax(logits / T); 1 without texts.

    Guo et al. 2017 (arXiv 1706.04599), section 4.2. logits float [N, L]; labels int [N], the true class of each.
    """
    if not len(labels):
        return 1.0
    candidates = torch.linspace(*_LOG_RANGE, _GRID, dtype=torch.float64).exp()
    losses = [float(F.cross_entropy(logits.double() / t, labels)) for t in candidates]
    return float(candidates[min(range(_GRID), key=losses.__getitem__)])


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
