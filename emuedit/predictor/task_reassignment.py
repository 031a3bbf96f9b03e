"""Reassign pairs to other tasks if the task predictor classifies their instruction as another task.

Emu Edit (arXiv 2311.10089, section 3) reassigns samples whose instruction fits another task. The thresholds are ours. A predictor
repeats the labels that it was trained on, correct or not. So the stage `router` writes out-of-fold predictions
(`cross_fitting`), which are used here. Pairs of annotated tasks keep their label: an annotator drew their target for it. No pair
becomes one of an annotated task, since a generated target is not such an annotation.
Shapes: N pairs, U distinct instructions, K tasks that the predictor knows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import content_key
from emuedit.data.publish import cache_folder
from emuedit.data.text_hash import text_hash
from emuedit.predictor import cross_fitting, ngram_classifier, task_predictor
from emuedit.predictor.task_predictor import TaskPredictor
from emuedit.progress import Progress
from emuedit.runtime import Runtime
from emuedit.tasks import is_annotated

TEXTS_PER_FILE = 10_240
"""Instructions that are predicted before the predictions are stored. A multiple of the batch of `TaskPredictor.probabilities`, as
is the number per call, so that a stopped run resumes with equal batches."""
_TEXTS_PER_CALL = 640
_TASKS, _FILES = "tasks.json", "*.npz"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reassignment:
    """The tasks of N pairs after reassignment."""

    tasks: tuple[str, ...]
    probability: Floats
    """[N] probability of that task; NaN if the predictor does not have the pair's task, which is then kept."""


def reassign(
    tasks: Sequence[str], texts: Sequence[str], known_tasks: Sequence[str], probabilities: Floats, min_probability: float
) -> Reassignment:
    """Replace the task of each of N pairs by the most probable one, if its probability is at least `min_probability`.

    A pair keeps its task if that or the most probable one is annotated. `probabilities` [N, K] are over the `known_tasks`.
    """
    column = {task: k for k, task in enumerate(known_tasks)}
    given_columns = np.array([column.get(task, -1) for task in tasks], int)
    best = probabilities.argmax(1) if len(texts) else given_columns
    rows = np.arange(len(texts))
    annotated = np.array([is_annotated(task) for task in known_tasks], bool)
    can_change = (given_columns >= 0) & ~annotated[given_columns] & ~annotated[best]
    chosen = np.where(can_change & (probabilities[rows, best] >= min_probability), best, given_columns)
    probability = np.where(chosen >= 0, probabilities[rows, chosen], np.nan)
    names = tuple(task if k < 0 else known_tasks[k] for task, k in zip(tasks, chosen, strict=True))
    return Reassignment(names, probability)


def predict_tasks(texts: Sequence[str], folder: Path, cache: Path) -> tuple[tuple[str, ...], Floats]:
    """The K tasks of the predictor in `folder`, and their probabilities for N instructions, [N, K], rows sum to 1.

    The class NO_EDIT is excluded: pairs always have instructions, and a predictor trained on few of them gives that class too
    high a probability.

    Training instructions use out-of-fold predictions. Predictions for other instructions, such as imported ones, are stored in
    the folder `cache` as they are made, for this predictor only: a stopped run resumes, and later only new texts are predicted.
    They depend, by rounding (1e-7), on the texts that were predicted in the same batch.
    """
    code = (__file__, task_predictor.__file__, ngram_classifier.__file__, cross_fitting.__file__)
    stored = cache_folder(cache, content_key({}, folder, *code, label="dataset: hash the task predictor"))
    predictor: TaskPredictor | None = None
    if not (stored / _TASKS).exists():
        predictor = _load(folder)
        with replacing(stored / _TASKS) as partial:
            partial.write_text(json.dumps(predictor.tasks), encoding="utf-8")
    tasks: tuple[str, ...] = tuple(json.loads((stored / _TASKS).read_text(encoding="utf-8")))
    out_of_fold = cross_fitting.read_out_of_fold(folder, tasks)
    distinct = sorted(set(texts))
    unseen = [text for text in distinct if text not in out_of_fold]
    if missing := _missing(unseen, stored):
        _predict(missing, predictor or _load(folder), stored)
    p = np.zeros((len(distinct), len(tasks)))
    p[[row for row, text in enumerate(distinct) if text not in out_of_fold]] = _read(unseen, stored, len(tasks))
    for row, text in enumerate(distinct):
        p[row] = out_of_fold.get(text, p[row])
    p /= np.maximum(p.sum(1, keepdims=True), np.finfo(np.float64).tiny)
    row_of = {text: number for number, text in enumerate(distinct)}
    return tasks, p[np.array([row_of[text] for text in texts], int)]


def _load(folder: Path) -> TaskPredictor:
    return task_predictor.load(str(folder), Runtime.choose(dtype="float32").device)


def _predict(texts: Sequence[str], predictor: TaskPredictor, stored: Path) -> None:
    """Predict distinct texts in their order and store the probabilities, one file per TEXTS_PER_FILE texts."""
    number = len(list(stored.glob(_FILES)))
    with Progress("dataset: predict tasks", len(texts), "instruction") as progress:
        for start in range(0, len(texts), TEXTS_PER_FILE):
            part, p = texts[start : start + TEXTS_PER_FILE], list[Floats]()
            for row in range(0, len(part), _TEXTS_PER_CALL):
                called = part[row : row + _TEXTS_PER_CALL]
                p.append(predictor.probabilities(called).double().numpy())
                progress.advance(len(called))
            with replacing(stored / f"{number:06d}.npz") as partial:
                np.savez(partial, digests=_digests(part), p=np.concatenate(p))
            number += 1


def _missing(texts: Sequence[str], stored: Path) -> list[str]:
    """The texts without a stored prediction, in their order."""
    digests = [np.zeros(0, np.uint64)]
    for file in stored.glob(_FILES):
        with np.load(file) as part:
            digests.append(part["digests"])
    is_stored = np.isin(_digests(texts), np.concatenate(digests))
    return [text for text, is_known in zip(texts, is_stored.tolist(), strict=True) if not is_known]


def _read(texts: Sequence[str], stored: Path, n_tasks: int) -> Floats:
    """The stored predictions of distinct texts, [texts, K]."""
    digests = _digests(texts)
    order = np.argsort(digests)
    p = np.zeros((len(texts), n_tasks))
    for file in sorted(stored.glob(_FILES)):
        with np.load(file) as part:
            places = np.searchsorted(digests, part["digests"], sorter=order).clip(max=max(0, len(texts) - 1))
            rows = order[places] if len(texts) else np.zeros(0, int)
            is_used = digests[rows] == part["digests"][: len(rows)]
            p[rows[is_used]] = part["p"][: len(rows)][is_used]
    return p


def _digests(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """A hash of 64 bits of each text."""
    return np.array([text_hash(text.encode()) for text in texts], np.uint64)
