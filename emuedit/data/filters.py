"""Filters: bounds on the scores of pairs, applied to table columns without decoding images.

Shapes: N pairs, R reasons to be rejected, T tasks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AfterValidator

from emuedit.data.records import Pair
from emuedit.data.shards import SCORE_PREFIX, read_fields
from emuedit.tasks import get_task

DEFAULT = "default"
"""Key of the filters for tasks without their own entry."""

Edge = Literal["min", "max"]
ScoreBounds = dict[Edge, float]
EDGES: tuple[tuple[Edge, Callable[..., npt.NDArray[np.bool_]]], ...] = (("min", np.less), ("max", np.greater))
"""Edge -> comparison that is true for a value beyond it."""


class FiltersError(ValueError):
    """Raised for filters on scores that the pairs do not have."""


def _check_filters(filters: dict[str, dict[str, ScoreBounds]]) -> dict[str, dict[str, ScoreBounds]]:
    for task, score_bounds in filters.items():
        if task != DEFAULT:
            get_task(task)
        for score, bounds in score_bounds.items():
            if not bounds or bounds.get("min", -np.inf) > bounds.get("max", np.inf):
                raise ValueError(f"want {{min: x}}, {{max: y}} or both with min <= max for {task}.{score}, got {bounds}")
    if DEFAULT not in filters:
        raise ValueError(f"want an entry {DEFAULT!r} for tasks without their own, got {sorted(filters)}; it may be empty")
    return filters


Filters = Annotated[dict[str, dict[str, ScoreBounds]], AfterValidator(_check_filters)]
"""Task -> score -> {min: x} and/or {max: y}. Tasks without an entry use `default`. Entries are not merged with `default`."""


@dataclass(frozen=True)
class FilterResult:
    """The filters that each of N pairs failed. A pair that failed none is kept."""

    reasons: tuple[str, ...]
    """The R names: <score>_min, <score>_max, and <score>_missing for an undefined score with a filter."""
    failed: npt.NDArray[np.bool_]  # [R, N]

    def with_reason(self, reason: str, failed: npt.NDArray[np.bool_]) -> "FilterResult":
        """The result with one more reason; `failed` is bool [N]."""
        return FilterResult((*self.reasons, reason), np.concatenate([self.failed, failed[None]]))

    def take(self, rows: slice | npt.NDArray[np.int64]) -> "FilterResult":
        """The result of some rows."""
        return FilterResult(self.reasons, self.failed[:, rows])

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Which pairs are kept, bool [N]."""
        return np.asarray(~self.failed.any(0))


def filters_for(filters: Filters, task: str) -> dict[str, ScoreBounds]:
    """The filters of a task: score -> bounds."""
    return filters.get(task, filters[DEFAULT])


def scores_used(filters: Filters) -> list[str]:
    """Names of all scores that any filter uses, sorted."""
    return sorted({score for score_bounds in filters.values() for score in score_bounds})


def apply_filters(table: pa.Table, filters: Filters) -> FilterResult:
    """Apply filters to N pairs, given as a table with the columns task and score_*.

    A filter on a null score fails, because the pair's quality is unknown. So a task whose score is always undefined must not
    have a filter on it. Raises FiltersError for a score without a column.
    """
    check_scores(table, scores_used(filters))
    task_code, tasks = encode_labels(table["task"])  # [N], [T]
    filters_by_task = [filters_for(filters, str(task)) for task in tasks]
    reasons: list[str] = []
    failed = [np.zeros((0, len(table)), bool)]
    for score in scores_used(filters):
        value = score_values(table, score)
        for edge, is_beyond in EDGES:
            bounds = np.array([task_filters.get(score, {}).get(edge, np.nan) for task_filters in filters_by_task])  # [T]
            if not np.isnan(bounds).all():
                reasons.append(f"{score}_{edge}")
                failed.append(is_beyond(value, bounds[task_code])[None])  # a comparison with NaN is False
        uses_score = np.array([score in task_filters for task_filters in filters_by_task], bool)  # [T]
        reasons.append(f"{score}_missing")
        failed.append((np.isnan(value) & uses_score[task_code])[None])
    return FilterResult(tuple(reasons), np.concatenate(failed))


def concat_results(results: Sequence[FilterResult]) -> FilterResult:
    """Join results of different filters on different pairs: pairs in the given order, every reason once."""
    reasons = tuple(dict.fromkeys(reason for result in results for reason in result.reasons))
    failed = np.zeros((len(reasons), sum(result.failed.shape[1] for result in results)), bool)
    start = 0
    for result in results:
        stop = start + result.failed.shape[1]
        failed[[reasons.index(reason) for reason in result.reasons], start:stop] = result.failed
        start = stop
    return FilterResult(reasons, failed)


def check_scores(table: pa.Table, scores: Iterable[str]) -> None:
    """Raise FiltersError for scores without a column in the table."""
    present = [name.removeprefix(SCORE_PREFIX) for name in table.column_names if name.startswith(SCORE_PREFIX)]
    if missing := sorted({*scores} - set(present)):
        raise FiltersError(f"want the scores used in params.yaml: {missing}, available: {present}; fix its filters or rank_by")


def read_columns(path: Path, *names: str) -> pa.Table:
    """Read the named columns of a shard of pairs, and all scores. Images are not read.

    Raises ShardError if the file is missing or damaged.
    """
    return read_fields(path, Pair, *names, with_scores=True).replace_schema_metadata(None)


def encode_labels(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[Any]]:
    """Encode a column of N texts as (codes [N], texts by code)."""
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()


def score_values(table: pa.Table, score: str) -> npt.NDArray[np.float64]:
    """Values of a score, [N]; NaN where it is null."""
    column = table[SCORE_PREFIX + score].cast(pa.float64())
    return np.asarray(column.to_numpy(), dtype=np.float64)
