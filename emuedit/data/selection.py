"""Select the pairs to keep among those that pass the filters, and count them; on table columns.

Shapes: N pairs, R reasons to be rejected.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emuedit.data import filters
from emuedit.data.filters import FilterResult

NOT_BEST = "not_best"
PROBABILITY = "task_probability"
REASSIGNED_TASK = "reassigned_task"
"""Column with the task after reassignment."""


def concat(*tables: pa.Table) -> pa.Table:
    """Concatenate tables; missing columns are filled with null."""
    return pa.concat_tables(tables, promote_options="default")


def reject_all_but_best(table: pa.Table, result: FilterResult, rank_by: str, keep: int, n_candidates: int) -> FilterResult:
    """Keep the `keep` best passing pairs of each instruction by a score; the others fail with `not_best`.

    Only the first `n_candidates` of N pairs, the generated ones, are compared; imported pairs of one instruction are not
    candidates of each other. Pairs without the score rank last; ties go to the earlier pair.
    """
    rows = np.flatnonzero(result.kept[:n_candidates])
    instruction = filters.encode_labels(table["instruction_id"])[0][rows]
    score = filters.score_values(table, rank_by)[rows]
    score = np.where(np.isnan(score), -np.inf, score)
    order = np.lexsort((-score, instruction))  # stable: ties stay in the order of generation
    sorted_instruction = instruction[order]
    is_first = np.r_[True, sorted_instruction[1:] != sorted_instruction[:-1]] if len(order) else np.zeros(0, bool)
    first = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    beaten = np.zeros(len(table), bool)
    beaten[rows[order[rank >= keep]]] = True
    return result.with_reason(NOT_BEST, beaten)


def count_verdicts(table: pa.Table, result: FilterResult) -> Counter[str]:
    """Counts overall and per task (`<task>.<name>`): pairs, kept, instructions with a kept pair, failures per reason."""
    codes, tasks = filters.encode_labels(table["task"])
    instruction, _ = filters.encode_labels(table["instruction_id"])
    kept = result.kept

    def per_task(selected: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(codes[selected], minlength=len(tasks))

    first_kept = np.zeros(len(table), bool)  # the first kept pair of each instruction
    first_kept[np.flatnonzero(kept)[np.unique(instruction[kept], return_index=True)[1]]] = True
    everything = np.ones(len(table), bool)
    columns = {"pairs": per_task(everything), "kept": per_task(kept), "kept_instructions": per_task(first_kept)}
    if REASSIGNED_TASK in table.column_names:
        columns["reassigned"] = per_task(np.asarray(pc.not_equal(table[REASSIGNED_TASK], table["task"]).to_numpy()))
    columns |= {reason: per_task(row) for reason, row in zip(result.reasons, result.failed, strict=True)}
    counts: Counter[str] = Counter()
    for name, numbers in columns.items():
        for task, count in zip(tasks, numbers, strict=True):
            if count or name in ("pairs", "kept", "reassigned"):
                counts[name] += int(count)
                counts[f"{task}.{name}"] += int(count)
    return counts
