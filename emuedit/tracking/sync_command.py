"""`emuedit sync`: upload runs that MLflow did not receive while it was unreachable."""

import argparse
import sys
from pathlib import Path
from typing import Any

from emuedit.data.publish import LOGS, STATS_FILE
from emuedit.tracking import moved_store, run_outbox, runs, service_errors, stats, store_address
from emuedit.tracking.service_errors import ServiceError


def add_commands(commands: Any) -> None:
    """Add the command to `emuedit`'s parser."""
    command = commands.add_parser("sync", help="upload runs that MLflow did not receive while it was unreachable")
    command.set_defaults(run=_sync, uses_registry=True)
    moved = f"first update the paths in {store_address.DATABASE} after the folder was moved or copied"
    command.add_argument("--moved", action="store_true", help=moved)


def _sync(options: argparse.Namespace) -> int:
    root = Path.cwd()
    if options.moved:
        print(f"{moved_store.adopt(root)} paths in {store_address.DATABASE} now point to {root}")
    waiting = run_outbox.entries(root)
    try:
        moved_store.check(root)
        service_errors.check()
        with service_errors.converted():
            if waiting and runs.restore_experiment():
                print(f"the experiment {runs.EXPERIMENT!r} had been deleted; restored it")
            sent = run_outbox.send_all(root)
            for run_id in sent:
                print(f"uploaded: run {run_id}")
            n_unsent = 0
            for path in sorted((root / LOGS).rglob(STATS_FILE)):
                n_lines = stats.replay(path)
                n_unsent += n_lines
                print(
                    f"uploaded: {path.relative_to(root)}"
                    if not n_lines
                    else f"not uploaded: {n_lines} lines of {path.relative_to(root)}"
                )
    except ServiceError as error:
        print(f"emuedit sync: {error}; {len(run_outbox.entries(root))} runs are pending in {run_outbox.FOLDER}", file=sys.stderr)
        return 1
    n_rejected = run_outbox.count_rejected(waiting)
    rejected = f"; MLflow rejected {n_rejected}" if n_rejected else ""
    n_others = len(waiting) - len(sent) - n_rejected
    others = f"; another process uploaded {n_others}" if n_others > 0 else ""
    print(
        f"{len(sent)} of {len(waiting)} pending runs uploaded{rejected}{others}. `uv run retrain` registers unregistered models"
    )
    return 1 if n_unsent or n_rejected else 0
