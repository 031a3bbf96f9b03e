"""A linear classifier of texts by their letter n-grams: the second expert of the task predictor, beside T5.

Multinomial logistic regression on TF-IDF of the n-grams of 2 to 5 letters inside words. It knows parts of words that it saw once,
where a T5 without pretraining knows nothing; T5 knows the order of words. `predictor/calibration.py` weighs both.
Shapes: N texts, V n-grams, L classes.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from emuedit.runtime import rng

WEIGHTS, VOCABULARY = "ngrams.safetensors", "ngrams.json"
"""Files in a task predictor's folder: weight [V, L], bias [L] and idf [V]; the n-grams in the order of the rows."""
LENGTHS = range(2, 6)
_INVERSE_PENALTY = 30.0  # C of the logistic regression
_MAX_ITERATIONS = 200
MAX_TEXTS = 20_000
"""A larger training set is sampled: memory is about 10 kB per text."""
TEXTS_PER_PASS = 4096
"""Texts whose n-grams are counted at once, at about 24 kB per text."""


class NgramClassifier:
    """Logits of L classes from the n-grams of a text; n-grams that were not in a training text are ignored."""

    def __init__(self, vocabulary: Sequence[str], idf: Tensor, weight: Tensor, bias: Tensor) -> None:
        """vocabulary: V n-grams; float32 idf [V], weight [V, L], bias [L]."""
        self.vocabulary, self.idf, self.weight, self.bias = tuple(vocabulary), idf, weight, bias
        self._row = {gram: row for row, gram in enumerate(self.vocabulary)}

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int], n_labels: int) -> "NgramClassifier":
        """Fit to N >= 1 texts with labels in [0, n_labels), or to MAX_TEXTS of them, see `sample_rows`. Deterministic."""
        sample = sample_rows(labels, MAX_TEXTS)
        texts, labels = [texts[row] for row in sample], [labels[row] for row in sample]
        counts = [Counter(ngrams(text)) for text in texts]
        frequency = Counter(gram for count in counts for gram in count)
        vocabulary = sorted(frequency)
        idf = torch.tensor([math.log((1 + len(texts)) / (1 + frequency[gram])) + 1 for gram in vocabulary])
        weight, bias = torch.zeros(len(vocabulary), n_labels), torch.zeros(n_labels)
        classifier = cls(vocabulary, idf, weight, bias)
        features, y = classifier._features(counts), torch.tensor(labels)
        optimizer = torch.optim.LBFGS(
            [weight.requires_grad_(), bias.requires_grad_()],
            max_iter=_MAX_ITERATIONS,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            penalty = weight.square().sum() / (2 * _INVERSE_PENALTY * len(texts))
            loss = F.cross_entropy(_linear(features, weight, bias), y) + penalty
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        classifier.weight, classifier.bias = weight.detach(), bias.detach()
        return classifier

    def logits(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, L] on the CPU, TEXTS_PER_PASS texts at a time."""
        parts = [torch.zeros(0, len(self.bias))]
        for start in range(0, len(texts), TEXTS_PER_PASS):
            counts = [Counter(ngrams(text)) for text in texts[start : start + TEXTS_PER_PASS]]
            parts.append(_linear(self._features(counts), self.weight, self.bias))
        return torch.cat(parts)

    def _features(self, counts: Sequence[Counter[str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the n-grams of all texts, where each text starts, and TF-IDF with unit norm per text."""
        rows: list[int] = []
        values: list[float] = []
        starts: list[int] = []
        for count in counts:
            pairs = [(self._row[gram], 1 + math.log(n)) for gram, n in count.items() if gram in self._row]
            starts.append(len(rows))
            rows += [row for row, _ in pairs]
            values += [value for _, value in pairs]
        indices, offsets = torch.tensor(rows, dtype=torch.long), torch.tensor(starts, dtype=torch.long)
        tf_idf = torch.tensor(values) * self.idf[indices]
        lengths = torch.diff(torch.tensor([*starts, len(rows)]))
        text = torch.repeat_interleave(torch.arange(len(counts)), lengths)
        norm = torch.zeros(len(counts)).index_add_(0, text, tf_idf.square()).sqrt()
        return indices, offsets, tf_idf / norm[text]

    def save(self, folder: Path) -> None:
        """Write `WEIGHTS` and `VOCABULARY`."""
        save_file({"weight": self.weight, "bias": self.bias, "idf": self.idf}, folder / WEIGHTS)
        (folder / VOCABULARY).write_text(json.dumps(self.vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: Path) -> NgramClassifier | None:
    """The classifier that was saved in a folder; None for a folder without one."""
    if not (folder / WEIGHTS).is_file():
        return None
    tensors = load_file(folder / WEIGHTS)
    vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    return NgramClassifier(vocabulary, tensors["idf"], tensors["weight"], tensors["bias"])


def ngrams(text: str) -> list[str]:
    """The n-grams of the words of a text in lower case, with a space at both ends of a word."""
    words = [f" {word} " for word in text.casefold().split()]
    return [word[i : i + n] for word in words for n in LENGTHS for i in range(max(len(word) - n + 1, 0))]


def sample_rows(labels: Sequence[int], n: int) -> list[int]:
    """Up to n rows in random order; each class has up to n / classes of them, and more if other classes have fewer.

    Classes that are smaller than their share are complete. Deterministic.
    """
    shuffled = rng("ngrams").permutation(len(labels)).tolist()
    quota: dict[int, int] = {}
    counts = Counter(labels).items()
    for position, (label, count) in enumerate(sorted(counts, key=lambda pair: (pair[1], pair[0]))):  # smaller classes first
        quota[label] = min(count, (n - sum(quota.values())) // (len(counts) - position))
    rows = []
    for row in shuffled:
        if quota[labels[row]] > 0:
            quota[labels[row]] -= 1
            rows.append(row)
    return rows


def _linear(features: tuple[Tensor, Tensor, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    indices, offsets, values = features
    return F.embedding_bag(indices, weight, offsets, mode="sum", per_sample_weights=values) + bias
