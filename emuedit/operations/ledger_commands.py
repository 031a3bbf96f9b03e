"""`emuedit ledger`: the yield of each task, the reasons for losses, the cost of a pair, and the trend over runs."""

import argparse
import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emuedit.operations import yield_ledger
from emuedit.operations.yield_ledger import ALL, ARTIFACT, METRICS, Ledger, YieldRow
from emuedit.tracking import runs, store_address
from emuedit.tracking.runs import LoggedRun

_LISTED_REASONS = 3
_KEPT = f"{METRICS}.{ALL}.kept"


def add_commands(commands: Any) -> None:
    """Add the command to `emuedit`'s parser."""
    command = commands.add_parser("ledger", help="show the yield of each task, and the cost of a kept pair")
    command.set_defaults(run=_show, uses_registry=True)
    command.add_argument("--runs", type=int, default=5, metavar="N", help="runs of the trend (default: 5)")
    command.add_argument("--json", action="store_true", help="print JSON")


def format_ledger(ledger: Ledger) -> str:
    """A table with one line per task, then one for all tasks."""
    price = f"{ledger.currency}/pair"
    lines = [
        f"{'task':14}{'captions':>9}{'instr.':>8}{'pairs':>8}{'kept':>8}{'yield':>7}{'seconds':>9}{price:>11}  lost most often"
    ]
    for row in ledger.rows:
        seconds = "-" if row.seconds is None else f"{row.seconds:.0f}"
        cost = "-" if row.cost_per_kept is None else f"{row.cost_per_kept:.4f}"
        lines.append(
            f"{row.task:14}{row.captions:9d}{row.instructions:8d}{row.candidates:8d}{row.kept:8d}{_share(row):>7}"
            f"{seconds:>9}{cost:>11}  {format_reasons(row)}"
        )
    return "\n".join(lines)


def format_reasons(row: YieldRow) -> str:
    """The most frequent reasons of a row."""
    return ", ".join(f"{reason} {count}" for reason, count in list(row.reasons.items())[:_LISTED_REASONS])


def format_trend(logged: Sequence[LoggedRun]) -> str:
    """A table of runs, the newest first, with the yield of all tasks together."""
    lines = [f"{'run':10}{'started':18}{'captions':>9}{'instr.':>8}{'pairs':>8}{'kept':>8}{'seconds':>9}{'cost/pair':>11}"]
    for run in logged:
        values = [
            run.metrics.get(f"{METRICS}.{ALL}.{name}") for name in ("captions", "instructions", "candidates", "kept", "seconds")
        ]
        captions, *others, seconds = ("-" if value is None else f"{value:.0f}" for value in values)
        cost = run.metrics.get(f"{METRICS}.{ALL}.cost_per_kept")
        started = dt.datetime.fromtimestamp(run.started_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M")
        numbers = "".join(f"{number:>8}" for number in others)
        lines.append(
            f"{run.run_id[:8]:10}{started:18}{captions:>9}{numbers}{seconds:>9}{'-' if cost is None else f'{cost:.4f}':>11}"
        )
    return "\n".join(lines)


def _share(row: YieldRow) -> str:
    """Share of kept pairs among the candidates."""
    return f"{row.kept / row.candidates:.0%}" if row.candidates else "-"


def _show(options: argparse.Namespace) -> int:
    logged = runs.recent_runs(_KEPT, options.runs) if store_address.has_store() else []
    text = runs.read_text(logged[0].run_id, ARTIFACT) if logged else None
    ledger = Ledger.from_dict(json.loads(text)) if text else yield_ledger.read(Path.cwd(), {})
    if options.json:
        trend = [vars(run) | {"metrics": {k: v for k, v in run.metrics.items() if k.startswith(f"{METRICS}.")}} for run in logged]
        print(json.dumps({"ledger": ledger and ledger.to_dict(), "runs": trend}, indent=1))
        return 0
    if ledger is None:
        print("No pairs were filtered here yet, and no run has a ledger; run `uv run retrain`.")
        return 0
    print(f"Run {logged[0].run_id}" if logged else "This folder; no run has a ledger yet, so the seconds are unknown")
    print("\n" + format_ledger(ledger))
    if logged:
        print("\n" + format_trend(logged))
    return 0
