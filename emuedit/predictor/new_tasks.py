"""Predict tasks that the task predictor was not trained on, from the example instructions of their packs (ours).

A logistic regression on the features of the trained T5 separates instructions of new tasks from those of the trained tasks. It is
fitted at the first prediction after packs were added; T5 stays frozen. The features of the known texts, about 10,000 texts, are
stored beside them. Shapes: B instructions, D the width of T5, M new tasks, N known texts with their variations.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from emuedit.predictor.wording_noise import WordingNoise, vary
from emuedit.runtime import rng, sample

KNOWN_INSTRUCTIONS = "known_instructions.json"
"""File in a task predictor's folder: class -> a sample of its training texts."""
KNOWN_FEATURES = "known_features.safetensors"
"""File in a task predictor's folder: float16 [N, D], the features of these texts and of their variations."""
PER_CLASS = 320
"""Sample size per class. With few texts, new wordings of a known task are mistaken for a new task (docs/log.md)."""
PRIOR_ODDS = 0.25
"""Prior odds of a new task against one known task: it is chosen if its probability without the prior exceeds 0.8."""
_VARIATIONS_KNOWN, _VARIATIONS_NEW = 1, 4
_RIDGE = 1e-4


@dataclass(frozen=True)
class KnownFeatures:
    """The features of known texts and their variations, computed once."""

    values: Tensor
    """float16 [N, D]."""
    text_hash: str
    """Hash of the N texts in order. Features of other texts are not used."""
    noise: WordingNoise
    """The noise of the variations."""


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
        known_features: KnownFeatures | None = None,
    ) -> NewTasks:
        """Fit to instructions of each new task and texts of each known class.

        `features` maps texts to float32 [B, D]. Texts are augmented with typing errors, omitted words and polite phrases.
        `known_features`: those of the known texts, and the noise for all texts; the features are computed if they are not given,
        or belong to other texts or a T5 of another width.
        """
        noise = WordingNoise() if known_features is None else known_features.noise
        random = rng("new tasks")
        n_known = len(known_instructions)
        known_texts, known_labels = _augment(known_instructions, _VARIATIONS_KNOWN, noise, random)
        new_texts, new_labels = _augment(instructions, _VARIATIONS_NEW, noise, random)
        new = features(new_texts)
        stored = None if known_features is None or known_features.text_hash != _hash(known_texts) else known_features.values
        old = features(known_texts) if stored is None or stored.shape[1] != new.shape[1] else stored.float()
        x, y = torch.cat([old, new]), torch.tensor([*known_labels, *(n_known + label for label in new_labels)])
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
    kept = {label: sample(sorted(set(wordings)), PER_CLASS, random) for label, wordings in sorted(by_class.items())}
    (folder / KNOWN_INSTRUCTIONS).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_known(folder: Path) -> dict[str, list[str]]:
    """Class -> texts; empty for a folder without the file (written by an earlier version)."""
    file = folder / KNOWN_INSTRUCTIONS
    if not file.is_file():
        return {}
    by_class: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    return by_class


def write_known_features(folder: Path, features: Callable[[Sequence[str]], Tensor], noise: WordingNoise) -> None:
    """Write the features of the texts that `write_known` wrote, and of their variations; `features` as for `NewTasks.fit`."""
    texts, _ = _augment(read_known(folder), _VARIATIONS_KNOWN, noise, rng("new tasks"))
    file = folder / KNOWN_FEATURES
    metadata = {"text_hash": _hash(texts), "noise": noise.model_dump_json()}
    save_file({"features": features(texts).half().contiguous()}, file, metadata)
    file.chmod(0o644)  # safetensors files are readable only by their owner


def read_known_features(folder: Path) -> KnownFeatures | None:
    """What `write_known_features` wrote; None for a folder without the file (written by an earlier version)."""
    file = folder / KNOWN_FEATURES
    if not file.is_file():
        return None
    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata() or {}
        noise = WordingNoise.model_validate_json(metadata.get("noise", "{}"))
        return KnownFeatures(tensors.get_tensor("features"), metadata.get("text_hash", ""), noise)


def _augment(
    by_class: Mapping[str, Sequence[str]], n_variations: int, noise: WordingNoise, random: np.random.Generator
) -> tuple[list[str], list[int]]:
    """The distinct texts of each class, followed by variations of each; and the number of the class of each text."""
    texts: list[str] = []
    labels: list[int] = []
    for label, wordings in enumerate(by_class.values()):
        distinct = sorted(set(wordings))
        varied = distinct + [vary(text, noise, random) for text in distinct for _ in range(n_variations)]
        texts += varied
        labels += [label] * len(varied)
    return texts, labels


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
