"""Filters: bounds on the raw scores of pairs, asked as one query over columns. No picture is opened.

N pairs, R reasons to fail, T tasks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator

from emuedit.tasks import task as known_task

DEFAULT = "default"
SCORE = "score_"
"""What the name of a score has in front of it as a column."""

Edge = Literal["min", "max"]
Bounds = dict[Edge, float]
EDGES: tuple[tuple[Edge, Callable[..., npt.NDArray[np.bool_]]], ...] = (("min", np.less), ("max", np.greater))


class FiltersError(ValueError):
    """Raised for gates that the pairs cannot answer."""


def _whole(gates: dict[str, dict[str, Bounds]]) -> dict[str, dict[str, Bounds]]:
    for row, scores in gates.items():
        if row != DEFAULT:
            known_task(row)
        for score, bounds in scores.items():
            if not bounds or bounds.get("min", -np.inf) > bounds.get("max", np.inf):
                raise ValueError(f"want {{min: x}}, {{max: y}} or both with min <= max for {row}.{score}, got {bounds}")
    if DEFAULT not in gates:
        raise ValueError(f"want a row {DEFAULT!r} for the tasks without their own, got {sorted(gates)}; it may be empty")
    return gates


Filters = Annotated[dict[str, dict[str, Bounds]], AfterValidator(_whole)]
"""Task -> score -> {min: x} and/or {max: y}. A task without a row has the row `default`; a row stands for itself alone."""


@dataclass(frozen=True)
class FilterResult:
    """What N pairs failed. A pair with no failure is kept."""

    reasons: tuple[str, ...]
    """The R names: <score>_min, <score>_max, <score>_missing (a gate asks for a score that is undefined)."""
    failed: npt.NDArray[np.bool_]  # [R, N]

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """bool [N]."""
        return np.asarray(~self.failed.any(0))


def filters_for(gates: Filters, task: str) -> dict[str, Bounds]:
    """The gates of a task."""
    return gates.get(task, gates[DEFAULT])


def scores_used(gates: Filters) -> list[str]:
    """Every score that some gate asks for."""
    return sorted({score for bounds in gates.values() for score in bounds})


def apply_filters(table: pa.Table, gates: Filters) -> FilterResult:
    """Ask the gates of N pairs: the columns task and score_*.

    A gate whose score is null fails: what could not be measured was not shown to be good. A task for which a score is never
    defined must not ask for it. Raises FiltersError for a score that is no column.
    """
    check_scores(table, scores_used(gates))
    of_pair, tasks = encode_labels(table["task"])
    rows = [filters_for(gates, str(task)) for task in tasks]
    reasons: list[str] = []
    failed = [np.zeros((0, len(table)), bool)]
    for score in scores_used(gates):
        value = score_values(table, score)
        for edge, beyond in EDGES:
            bounds = np.array([one.get(score, {}).get(edge, np.nan) for one in rows])
            if not np.isnan(bounds).all():
                reasons.append(f"{score}_{edge}")
                failed.append(beyond(value, bounds[of_pair])[None])  # a comparison with NaN is False
        wants = np.array([score in one for one in rows], bool)
        reasons.append(f"{score}_missing")
        failed.append((np.isnan(value) & wants[of_pair])[None])
    return FilterResult(tuple(reasons), np.concatenate(failed))


def concat_results(judged: Sequence[FilterResult]) -> FilterResult:
    """What was judged apart, by gates of its own each, as one: pairs in the order given, every reason once."""
    reasons = tuple(dict.fromkeys(reason for one in judged for reason in one.reasons))
    failed = np.zeros((len(reasons), sum(one.failed.shape[1] for one in judged)), bool)
    start = 0
    for one in judged:
        n = one.failed.shape[1]
        failed[[reasons.index(reason) for reason in one.reasons], start : start + n] = one.failed
        start += n
    return FilterResult(reasons, failed)


def check_scores(table: pa.Table, scores: Iterable[str]) -> None:
    """Raise FiltersError for scores that are no column."""
    names = [name.removeprefix(SCORE) for name in table.column_names if name.startswith(SCORE)]
    if lost := sorted({*scores} - set(names)):
        raise FiltersError(f"want the scores {lost} that params.yaml asks of pairs, got {names}; mend the gates or rank_by there")


def read_columns(path: Path, *names: str) -> pa.Table:
    """Some columns of a shard of pairs, and all scores: bytes of pictures are not read."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    scores = [name for name in file.schema_arrow.names if name.startswith(SCORE)]
    return file.read(columns=[*names, *scores]).replace_schema_metadata(None)


def encode_labels(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[Any]]:
    """Texts as numbers [N], and what each number stands for."""
    coded = column.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    return coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()


def score_values(table: pa.Table, score: str) -> npt.NDArray[np.float64]:
    """A score [N], NaN where it is null."""
    column = table[SCORE + score].cast(pa.float64())
    return np.asarray(column.to_numpy(), dtype=np.float64)
