"""`emuedit sync`: send to MLflow what it did not take while it was away."""

import argparse
import sys
from pathlib import Path
from typing import Any

from emuedit.tracking import experiments, moved_store, run_outbox, runs, service_errors, stats
from emuedit.tracking.service_errors import ServiceError

_FOLDERS = ("models", "reports", "data")
"""Where stages leave the `stats.jsonl` of their runs."""


def add_commands(commands: Any) -> None:
    """Add the command to `emuedit`'s parser."""
    command = commands.add_parser("sync", help="send to MLflow what it did not take while it was away", allow_abbrev=False)
    command.set_defaults(run=_sync)
    moved = f"first make {moved_store.DATABASE} of a folder that was moved or copied this folder's own"
    command.add_argument("--moved", action="store_true", help=moved)


def _sync(options: argparse.Namespace) -> int:
    root = Path.cwd()
    if options.moved:
        print(f"{moved_store.adopt(root)} paths in {moved_store.DATABASE} now lead to {root}")
    waiting = run_outbox.entries(root)
    try:
        moved_store.check(root)
        service_errors.check()
        with service_errors.converted():
            if waiting and experiments.restore(runs.EXPERIMENT):
                print(f"the experiment {runs.EXPERIMENT!r} had been deleted; it is restored")
            sent = run_outbox.send_all(root)
            for run_id in sent:
                print(f"sent: run {run_id}")
            n_unsent = 0
            for path in sorted(file for folder in _FOLDERS for file in (root / folder).rglob("stats.jsonl")):
                n_lines = stats.replay(path)
                n_unsent += n_lines
                print(
                    f"sent: {path.relative_to(root)}" if not n_lines else f"not sent: {n_lines} lines of {path.relative_to(root)}"
                )
    except ServiceError as error:
        print(f"emuedit sync: {error}; {len(run_outbox.entries(root))} runs wait in {run_outbox.FOLDER}", file=sys.stderr)
        return 1
    n_rejected = len(waiting) - len(sent)
    outcome = f"{n_rejected} of them were refused, the others are" if n_rejected else "all are"
    print(f"{len(waiting)} runs were waiting; {outcome} in MLflow now. `uv run retrain` registers what is not registered yet")
    return 1 if n_unsent or n_rejected else 0
