"""How long does it take to refilter a million pairs after a threshold changed? Images are not decoded.

`uv run python bench/refilter.py [--quick]` writes `bench/results/refilter.json`; its last line is the same JSON.
Seconds are CPU seconds of one thread. For comparison, the same rules are applied in a simple loop over records;
the benchmark fails if the two disagree.
"""

import statistics
import time
from typing import Any

import numpy as np
import pyarrow as pa
from harness import command

from emuedit import config
from emuedit.data import filters, selection
from emuedit.data.shards import SCORE_PREFIX
from emuedit.stages.dataset import DatasetParams, filter_pairs
from emuedit.tasks import TASKS

CANDIDATES = 4
"""Pairs per instruction."""
UNDEFINED_SHARE = 0.1
"""Share of the scores that are undefined."""
LOOP_SHARE = 20
"""The loop filters one in this many pairs; its time is scaled up."""


def random_pairs(n: int, params: DatasetParams) -> pa.Table:
    """A table of n pairs with random scores in [0, 1) for all scores that the filters and the ranking use."""
    random = np.random.default_rng(0)
    scores = sorted({*filters.scores_used(params.filters), params.rank_by, selection.PROBABILITY})
    instruction = np.arange(n) // CANDIDATES
    task = np.array([task.name for task in TASKS])[instruction % len(TASKS)]
    columns: dict[str, Any] = {
        "id": pa.array([f"{i:016x}" for i in range(n)]),
        "instruction_id": pa.array([f"{i:016x}" for i in instruction]),
        "task": pa.array(task),
    }
    for score in scores:
        columns[SCORE_PREFIX + score] = pa.array(random.random(n), mask=random.random(n) < UNDEFINED_SHARE)
    return pa.table(columns)


def filter_in_a_loop(table: pa.Table, params: DatasetParams) -> list[bool]:
    """Which pairs `filter_pairs` keeps, computed record by record."""
    candidates: dict[str, list[tuple[float, int]]] = {}  # instruction -> (negative rank score, row) of passing pairs
    reject = params.reassignment.reject if params.reassignment else 0.0
    for row, pair in enumerate(table.to_pylist()):
        probability = pair[SCORE_PREFIX + selection.PROBABILITY]
        if passes_filters(pair, params) and (probability is None or probability >= reject):
            rank = pair[SCORE_PREFIX + params.rank_by]
            candidates.setdefault(pair["instruction_id"], []).append((np.inf if rank is None else -rank, row))
    kept = {row for group in candidates.values() for _, row in sorted(group)[: params.keep_per_instruction]}
    return [row in kept for row in range(len(table))]


def passes_filters(pair: dict[str, Any], params: DatasetParams) -> bool:
    """Whether a record passes the filters of its task; an undefined score fails."""
    for score, bounds in params.filters_for(pair["task"]).items():
        value = pair[SCORE_PREFIX + score]
        if value is None or value < bounds.get("min", -np.inf) or value > bounds.get("max", np.inf):
            return False
    return True


def main() -> None:
    """Measure, write, print."""
    parser = command.argument_parser(__doc__, quick="a hundred thousand pairs and fewer rounds")
    args = parser.parse_args()
    n, rounds = (100_000, 3) if args.quick else (1_000_000, 5)
    params = config.load(DatasetParams, "dataset", command.ROOT / "params.yaml")
    table = random_pairs(n, params)
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        result = filter_pairs(table, params)
        selection.count_verdicts(table, result)
        seconds.append(time.process_time() - start)
    part = table.slice(0, n // LOOP_SHARE)
    start = time.process_time()
    kept = filter_in_a_loop(part, params)
    loop_s = (time.process_time() - start) * n / len(part)
    assert kept == filter_pairs(part, params).kept.tolist(), "the query and the loop must keep the same pairs"
    figures = {
        "seconds_per_million": round(statistics.median(seconds) * 1e6 / n, 3),
        "loop_seconds_per_million": round(loop_s * 1e6 / n, 1),
        "ratio_vs_loop": round(loop_s / statistics.median(seconds), 1),
        "n_pairs": n,
        "n_scores": sum(name.startswith(SCORE_PREFIX) for name in table.column_names),
        "kept_share": round(float(result.kept.mean()), 4),
        "rounds": rounds,
    }
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
