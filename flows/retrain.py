"""`uv run retrain`: bring everything up to date, register the editor, let the gate decide.

Prefect is started only when there is something to do; without a server it starts one of its own for as long as it needs it.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from emuedit.runtime import QUIET_ENV, set_env_defaults
from emuedit.tracking.registry import RegistryError
from flows import dvc_graph, promotion_gate, release
from flows.run_stage import StageError

EXPECTED = (StageError, RegistryError, dvc_graph.GraphError, promotion_gate.GateError)
RETRAIN_ENV = QUIET_ENV | {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # what fails is told below, once
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # twenty are not enough beside a training
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "DVC_NO_ANALYTICS": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done or nothing to do, 1 when a stage or the registry failed, 130 after ctrl-c."""
    asked = _parser().parse_args(arguments)
    set_env_defaults(RETRAIN_ENV)
    began = time.monotonic()
    root = Path.cwd()
    try:
        graph = dvc_graph.read(root)
        stale = graph.stale(asked.force)
        if asked.dry_run:
            _list(graph, stale)
            return 0
        known = release.known(graph) if not stale and not asked.no_register else None
        if not stale and (known or asked.no_register):
            print(f"Nothing to do: all {len(graph.stages)} stages are up to date" + (", and registered." if known else "."))
            _say(root, graph, known or release.RetrainResult(table=release.table(graph)), began)
            return 0
        outcome = _flow(root, not asked.no_register, asked.force, asked.max_parallel)
        _say(root, dvc_graph.read(root), outcome, began)
    except KeyboardInterrupt:
        print("\nretrain: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except Exception as error:  # the last door: everything is told, what was not expected with its trace
        if not isinstance(error, EXPECTED):
            traceback.print_exc()
        print(f"\nretrain: {error}\nThe same command goes on where it was.", file=sys.stderr)
        return 1
    return 0


def _flow(root: Path, register: bool, force: bool, max_parallel: int) -> release.RetrainResult:
    from flows import pipeline

    told = pipeline.retrain(register, force, max_parallel)
    graph = dvc_graph.read(root)
    known = release.known(graph) if register else None
    decision = promotion_gate.Decision(bool(told["promoted"]), told["reason"]) if told["reason"] else None
    return release.RetrainResult(
        told["stages"], told["run_id"], known.version if known else None, told["new"], decision, release.table(graph)
    )


def _list(graph: dvc_graph.Graph, stale: dict[str, tuple[str, ...]]) -> None:
    print(f"{len(stale)} of {len(graph.stages)} stages are out of date.")
    for name, reasons in stale.items():
        print(f"  {name}: {'; '.join(reasons)}")


def _say(root: Path, graph: dvc_graph.Graph, outcome: release.RetrainResult, began: float) -> None:
    """The last words: the table, and where everything is."""
    if outcome.table:
        systems = list(outcome.table)
        rows = list(dict.fromkeys(name for row in outcome.table.values() for name in row))
        print(f"\n{promotion_gate.METRIC.replace('_', ' '):14}" + "".join(f"{name:>12}" for name in systems))
        for row in rows:
            values = [outcome.table[name].get(row) for name in systems]
            print(f"{row:14}" + "".join(f"{'-' if value is None else format(value, '.2f'):>12}" for value in values))
    print()
    for path in graph.metrics:
        print(f"metrics     {path}")
    for stage in graph.stages:
        if stage.meta.get("report"):
            for picture in sorted(file for out in stage.outs for file in (root / out).rglob("*.png")):
                print(f"pictures    {picture.relative_to(root)}")
    if outcome.version:
        print(f"registered  {outcome.version.uri}" + ("" if outcome.new else " (as before)"))
    if outcome.decision:
        print(f"gate        {'champion' if outcome.decision.promote else 'challenger only'}: {outcome.decision.reason}")
    if outcome.run_id:
        print(f"run         {outcome.run_id} in {os.environ.get('MLFLOW_TRACKING_URI') or 'mlflow.db'}")
    ran = sum(outcome.seconds.values())
    took = time.monotonic() - began
    print(f"time        {took:.0f} s" + (f", {ran:.0f} s of it in {len(outcome.seconds)} stages" if outcome.seconds else ""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retrain", description="Run what is out of date, register the editor, let the gate decide."
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what is out of date, and why")
    parser.add_argument("--no-register", action="store_true", help="leave the registry alone")
    parser.add_argument("--force", action="store_true", help="run every stage again")
    parser.add_argument("--max-parallel", type=int, default=1, metavar="N", help="stages that may run side by side (default: 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
