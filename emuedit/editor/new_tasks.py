"""Predict tasks that the task predictor was not trained on, from the example instructions of their packs (ours).

A logistic regression on the features of the trained T5 separates instructions of new tasks from those of the trained tasks. It is
fitted at the first prediction after packs were added; T5 stays frozen. Shapes: B instructions, D the width of T5, M new tasks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from emuedit.editor.wording_noise import WordingNoise, vary
from emuedit.runtime import rng

KNOWN_INSTRUCTIONS = "known_instructions.json"
"""File in a task predictor's folder: class -> a sample of its training texts."""
PER_CLASS = 320
"""Sample size per class. With few texts, new wordings of a known task are mistaken for a new task (docs/log.md)."""
PRIOR_ODDS = 0.25
"""Prior odds of a new task against one known task: it is chosen if its probability without the prior exceeds 0.8."""
_NOISE = WordingNoise()
_VARIATIONS_KNOWN, _VARIATIONS_NEW = 1, 4
_RIDGE = 1e-4


class NewTasks:
    """A classifier that separates M new tasks from the classes of the task predictor."""

    def __init__(self, names: Sequence[str], weight: Tensor, bias: Tensor, mean: Tensor) -> None:
        self.names = tuple(names)
        self._weight, self._bias, self._mean = weight, bias, mean  # [classes, D], [classes], [D]; the new tasks come last

    @classmethod
    def fit(
        cls,
        instructions: Mapping[str, Sequence[str]],
        known_instructions: Mapping[str, Sequence[str]],
        features: Callable[[Sequence[str]], Tensor],
    ) -> NewTasks:
        """Fit to instructions of each new task and texts of each known class.

        `features` maps texts to float32 [B, D]. Texts are augmented with typing errors, omitted words and polite phrases.
        """
        random = rng("new tasks")
        texts, labels = [], []
        n_known = len(known_instructions)
        for label, wordings in enumerate([*known_instructions.values(), *instructions.values()]):
            distinct, n_variations = sorted(set(wordings)), _VARIATIONS_KNOWN if label < n_known else _VARIATIONS_NEW
            varied = distinct + [vary(text, _NOISE, random) for text in distinct for _ in range(n_variations)]
            texts += varied
            labels += [label] * len(varied)
        x, y = features(texts), torch.tensor(labels)
        mean = x.mean(0)
        x = F.normalize(x - mean, dim=-1)
        class_weights = 1 / torch.bincount(y).float()  # all classes have equal weight
        weight = torch.zeros(len(class_weights), x.shape[1], requires_grad=True)
        bias = torch.zeros(len(class_weights), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ weight.T + bias, y, weight=class_weights) + _RIDGE * weight.square().mean()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        bias = bias.detach()
        bias[n_known:] += math.log(PRIOR_ODDS)
        return cls(list(instructions), weight.detach(), bias, mean)

    def probabilities(self, features: Tensor) -> Tensor:
        """float32 [B, D] -> [B, 1 + M]: the probability of no new task, and of each new task."""
        p = (F.normalize(features - self._mean, dim=-1) @ self._weight.T + self._bias).softmax(-1)
        n_known = p.shape[1] - len(self.names)
        return torch.cat([p[:, :n_known].sum(1, keepdim=True), p[:, n_known:]], 1)


def write_known(folder: Path, texts: Sequence[str], labels: Sequence[str]) -> None:
    """Write a random sample of up to PER_CLASS texts per class for `read_known`."""
    by_class: dict[str, list[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        by_class.setdefault(label, []).append(text)
    random = rng("known instructions")
    kept = {label: random.permutation(sorted(set(wordings)))[:PER_CLASS].tolist() for label, wordings in sorted(by_class.items())}
    (folder / KNOWN_INSTRUCTIONS).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_known(folder: Path) -> dict[str, list[str]]:
    """Class -> texts; empty for a folder without the file (written by an earlier version)."""
    file = folder / KNOWN_INSTRUCTIONS
    if not file.is_file():
        return {}
    by_class: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    return by_class
