"""A second look at the tasks of pairs: the router reads every instruction and may say that it asks for another task.

Emu Edit (arXiv 2311.10089, section 3) reassigns samples whose instruction fits another task. Thresholds are ours.
Shapes: N pairs, U different instructions, K tasks that the router knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emuedit.data.publish import fingerprint
from emuedit.editor import task_predictor

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reassignment:
    """The tasks of N pairs after the router had its say."""

    tasks: tuple[str, ...]
    probability: Floats
    """[N] of that task; NaN where the router does not know the pair's own task, which then stays."""


def reassigned(
    tasks: Sequence[str], texts: Sequence[str], known: Sequence[str], probabilities: Floats, least: float
) -> Reassignment:
    """Tasks and instructions of N pairs, p [N, K] over the `known` tasks: one at least as probable as `least` takes over."""
    row = {task: k for k, task in enumerate(known)}
    own = np.array([row.get(task, -1) for task in tasks], int)
    best = probabilities.argmax(1) if len(texts) else own
    p = probabilities[np.arange(len(texts)), best]
    chosen = np.where((own >= 0) & (p >= least), best, own)
    found = np.where(chosen >= 0, probabilities[np.arange(len(texts)), chosen], np.nan)
    return Reassignment(tuple(task if k < 0 else known[k] for task, k in zip(tasks, chosen, strict=True)), found)


def read(texts: Sequence[str], folder: Path, cache: Path) -> tuple[tuple[str, ...], Floats]:
    """The K tasks that the router in `folder` knows, and their probabilities for N instructions, float64 [N, K].

    What it said once is kept in the folder `cache`: judging by other thresholds reads nothing.
    """
    said = sorted(set(texts))
    file = cache / f"{fingerprint({'said': said}, folder, task_predictor.__file__)}.npz"
    if not file.exists():
        router = task_predictor.load(str(folder))
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part.npz")
        np.savez(partial, tasks=np.array(router.tasks), p=router.probabilities(said).double().numpy())
        partial.replace(file)
    with np.load(file) as kept:
        at = {text: row for row, text in enumerate(said)}
        return tuple(kept["tasks"].tolist()), kept["p"][[at[text] for text in texts]].reshape(len(texts), -1)
