"""Reassign pairs to other tasks if the task predictor classifies their instruction as another task.

Emu Edit (arXiv 2311.10089, section 3) reassigns samples whose instruction fits another task. The thresholds are ours. A predictor
repeats the labels that it was trained on, correct or not. So the stage `router` writes out-of-fold predictions
(`cross_fitting`), which are used here.
Shapes: N pairs, U distinct instructions, K tasks that the predictor knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import content_key
from emuedit.predictor import cross_fitting, ngram_classifier, task_predictor
from emuedit.runtime import Runtime

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

    `probabilities` [N, K] are over the `known_tasks`.
    """
    column = {task: k for k, task in enumerate(known_tasks)}
    given_columns = np.array([column.get(task, -1) for task in tasks], int)
    best = probabilities.argmax(1) if len(texts) else given_columns
    rows = np.arange(len(texts))
    chosen = np.where((given_columns >= 0) & (probabilities[rows, best] >= min_probability), best, given_columns)
    probability = np.where(chosen >= 0, probabilities[rows, chosen], np.nan)
    names = tuple(task if k < 0 else known_tasks[k] for task, k in zip(tasks, chosen, strict=True))
    return Reassignment(names, probability)


def predict_tasks(texts: Sequence[str], folder: Path, cache: Path) -> tuple[tuple[str, ...], Floats]:
    """The K tasks of the predictor in `folder`, and their probabilities for N instructions, [N, K], rows sum to 1.

    The class NO_EDIT is excluded: pairs always have instructions, and a predictor trained on few of them gives that class too
    high a probability.

    Training instructions use out-of-fold predictions. Predictions for other instructions, such as imported ones, are cached in
    the folder `cache` (newest entry only), so a change of thresholds needs no network.
    """
    distinct = sorted(set(texts))
    code = (__file__, task_predictor.__file__, ngram_classifier.__file__, cross_fitting.__file__)
    file = cache / f"{content_key({'texts': distinct}, folder, *code)}.npz"
    if not file.exists():
        predictor = task_predictor.load(str(folder), Runtime.choose(dtype="float32").device)
        p = np.zeros((len(distinct), len(predictor.tasks)))
        out_of_fold = cross_fitting.read_out_of_fold(folder, predictor.tasks)
        unseen = [row for row, text in enumerate(distinct) if text not in out_of_fold]
        p[unseen] = predictor.probabilities([distinct[row] for row in unseen]).double().numpy()
        for row, text in enumerate(distinct):
            p[row] = out_of_fold.get(text, p[row])
        p /= np.maximum(p.sum(1, keepdims=True), np.finfo(np.float64).tiny)
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            np.savez(partial, tasks=np.array(predictor.tasks), p=p)
        for old in set(cache.glob("*.npz")) - {file}:
            old.unlink()
    with np.load(file) as cached:
        row_of = {text: number for number, text in enumerate(distinct)}
        return tuple(cached["tasks"].tolist()), cached["p"][np.array([row_of[text] for text in texts], int)]
