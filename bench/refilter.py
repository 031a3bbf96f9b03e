"""How long does it take to judge a million pairs anew when a threshold moves? No picture is opened.

`uv run python bench/refilter.py [--quick]` writes `bench/results/refilter.json`; its last line is the same JSON.
Seconds are of processor time (one thread). Beside it, the same rules as a loop over records, which is what one would write first.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from emuedit import config
from emuedit.stages import dataset
from emuedit.stages.dataset import Params, judge
from emuedit.tasks import TASKS

CANDIDATES = 4
ROOT = Path(__file__).parent.parent


def pairs(n: int, params: Params) -> pa.Table:
    """A table of n pairs with made-up scores, one in ten undefined, `CANDIDATES` for each instruction."""
    chance = np.random.default_rng(0)
    scores = sorted({score for row in params.gates.values() for score in row} | {params.rank_by, dataset.PROBABILITY})
    instruction = np.arange(n) // CANDIDATES
    task = np.array([one.name for one in TASKS])[instruction % len(TASKS)]
    columns: dict[str, Any] = {"id": pa.array([f"{i:016x}" for i in range(n)])}
    columns |= {"instruction_id": pa.array([f"{i:016x}" for i in instruction]), "task": pa.array(task)}
    for score in scores:
        columns[f"score_{score}"] = pa.array(chance.random(n), mask=chance.random(n) < 0.1)
    return pa.table(columns)


def one_by_one(table: pa.Table, params: Params) -> list[bool]:
    """The same verdicts, row by row."""
    best: dict[str, list[tuple[float, int]]] = {}
    reject = params.routing.reject if params.routing else 0.0
    for i, pair in enumerate(table.to_pylist()):
        for score, bounds in params.row(pair["task"]).items():
            value = pair[f"score_{score}"]
            if value is None or value < bounds.get("min", -np.inf) or value > bounds.get("max", np.inf):
                break
        else:
            probability = pair["score_task_probability"]
            if probability is not None and probability < reject:
                continue
            rank = pair[f"score_{params.rank_by}"]
            best.setdefault(pair["instruction_id"], []).append((np.inf if rank is None else -rank, i))
    kept = {i for group in best.values() for _, i in sorted(group)[: params.keep]}
    return [i in kept for i in range(len(table))]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundred thousand pairs and fewer rounds")
    quick = parser.parse_args().quick
    n, rounds = (100_000, 3) if quick else (1_000_000, 5)
    params = config.load(Params, "dataset", ROOT / "params.yaml")
    table = pairs(n, params)
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        judged = judge(table, params)
        dataset.tally(table, judged)
        seconds.append(time.process_time() - began)
    some = table.slice(0, n // 20)
    began = time.process_time()
    kept = one_by_one(some, params)
    loop_s = (time.process_time() - began) * n / len(some)
    assert kept == judge(some, params).kept.tolist(), "the query and the loop must agree"
    figures = {
        "seconds_per_million": round(statistics.median(seconds) * 1e6 / n, 3),
        "loop_seconds_per_million": round(loop_s * 1e6 / n, 1),
        "ratio_vs_loop": round(loop_s / statistics.median(seconds), 1),
        "n_pairs": n,
        "n_scores": sum(name.startswith("score_") for name in table.column_names),
        "kept_share": round(float(judged.kept.mean()), 4),
        "rounds": rounds,
    }
    (ROOT / "bench" / "results" / "refilter.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
