"""Cross-fitting of the task predictor: each instruction is predicted by a model that was not trained on its wording.

Two instructions have the same wording if they differ only in function words and words from their captions and objects: "make the
star red" and "make a red ring blue". Shapes: N instructions, K tasks, k folds.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from emuedit.data.records import Instruction
from emuedit.runtime import seed_for

OUT_OF_FOLD = "out_of_fold.parquet"
"""File in `models/router`: one row per distinct instruction, with `text`, `fold`, and the probability of each task."""
_PREFIX = "p_"
_WORD = re.compile(r"[^\W_]+")
_FILLED = "_"
FUNCTION_WORDS = {
    "a", "an", "the", "this", "that", "these", "those", "it", "its", "their", "his", "her", "and", "or", "of", "in", "on", "at",
    "to", "from", "into", "onto", "with", "for", "by", "as", "is", "are",
}  # fmt: skip
"""Words that are replaced whatever the captions. Otherwise the wording of "remove the dog" would depend on whether the caption
has "the", and "add a dog" and "add an apple" would be two wordings."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """A text with its task, or the class of texts that are no instructions, and the fold of its wording."""

    text: str
    label: str
    fold: int


def wording(instruction: Instruction) -> str:
    """The instruction with each run of function words and words from its captions and objects replaced by one `_`."""
    described = (instruction.source_caption, instruction.target_caption, instruction.source_object, instruction.target_object)
    filled = FUNCTION_WORDS.union(word for text in described for word in _WORD.findall((text or "").casefold()))
    words = [_FILLED if word in filled else word for word in _WORD.findall(instruction.text.casefold())]
    return " ".join(word for i, word in enumerate(words) if word != _FILLED or words[i - 1 : i] != [_FILLED])


def fold_of(key: str, n_folds: int) -> int:
    """The fold in [0, n_folds) of a wording; deterministic."""
    return seed_for("router", "fold", key) % n_folds


def label_instructions(rows: Iterable[Instruction], n_folds: int) -> list[Example]:
    """Instructions with the fold of their wording; equal texts are in one fold, whatever captions they were written for."""
    fold_by_text: dict[str, int] = {}
    return [Example(row.text, row.task, fold_by_text.setdefault(row.text, fold_of(wording(row), n_folds))) for row in rows]


def one_fold_tasks(examples: Iterable[Example]) -> list[str]:
    """The tasks whose examples are all in one fold: the models that predict them were not trained on that task."""
    folds: dict[str, set[int]] = {}
    for example in examples:
        folds.setdefault(example.label, set()).add(example.fold)
    return sorted(label for label, used in folds.items() if len(used) == 1)


def write_out_of_fold(folder: Path, texts: Sequence[str], folds: Sequence[int], tasks: Sequence[str], p: Floats) -> None:
    """Write the out-of-fold predictions p [N, K]; duplicate texts are written once."""
    rows = list({text: row for row, text in enumerate(texts)}.values())
    columns: dict[str, object] = {"text": [texts[row] for row in rows], "fold": [folds[row] for row in rows]}
    columns |= {_PREFIX + task: p[rows, k].astype(np.float32) for k, task in enumerate(tasks)}
    pq.write_table(pa.table(columns), folder / OUT_OF_FOLD)


def read_out_of_fold(folder: Path, tasks: Sequence[str]) -> dict[str, Floats]:
    """Text -> probabilities of the K tasks, float64 [K]; empty for a predictor that was trained without folds."""
    file = folder / OUT_OF_FOLD
    if not file.exists():
        return {}
    table = pq.read_table(file)
    p = np.stack([table[_PREFIX + task].to_numpy() for task in tasks], axis=1).astype(np.float64)
    return dict(zip(table["text"].to_pylist(), p, strict=True))
