"""`uv run retrain`: run the stages that are out of date, register the editor, apply the promotion gate.

Prefect is started only if there is something to do; without a server, a local one is started and stopped afterwards.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from emuedit import params_check
from emuedit.config import ParamsError
from emuedit.metrics.success_table import format_success
from emuedit.name_hints import check_options
from emuedit.operations.servers.server_stack import HEARTBEAT_ENV
from emuedit.processes import QUIET_ENV, keep_compiled_modules, open_missing_streams, run_and_exit, set_env_defaults
from emuedit.tracking import store_address
from emuedit.tracking.service_errors import SERVICE_ENV, hide_password
from flows import dvc_graph, flow_process, prefect_access, release, run_history, stage_outputs
from flows.error_output import print_trace
from flows.retrain_options import RetrainOptions
from flows.retrain_result import RetrainResult
from flows.run_history import RunLine
from flows.run_reason import complete_reason
from flows.stopping import Stopped, stop_on_signals, stop_with_uv

RETRAIN_ENV = QUIET_ENV | {
    **SERVICE_ENV,
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    **HEARTBEAT_ENV,
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # a failure is printed once, below
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "DVC_NO_ANALYTICS": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done or nothing to do, 1 if a stage or the registry failed, 128 + n after signal n (ctrl-c: 130).

    A retrain during which MLflow was unreachable, so that its run is stored and uploaded later, is done.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    set_env_defaults(RETRAIN_ENV)
    keep_compiled_modules()
    try:
        check_options(words)
        return _retrain(_parser().parse_args(words))
    except Stopped as stopped:
        print(f"\nretrain: stopped by {stopped.reason}; the same command resumes", file=sys.stderr)
        return stopped.exit_status
    except ParamsError as error:
        print(f"retrain: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # the outermost handler: project errors explain themselves, others are printed with a traceback
        print_trace(error)
        first_line, *rest = hide_password(str(error)).splitlines() or [type(error).__name__]
        details = "; its output is above" if rest else ""
        print(f"\nretrain: {first_line.removesuffix(':')}{details}; the same command resumes", file=sys.stderr)
        return 1


def console_main() -> NoReturn:
    """The command `retrain`: `main`, stopped by signals and with the `uv run` that started it."""
    open_missing_streams()
    stop_on_signals()
    stop_with_uv()
    run_and_exit(main, wait_for_threads=True)


def _retrain(arguments: argparse.Namespace) -> int:
    start, root, reason = time.monotonic(), Path.cwd(), complete_reason(arguments.reason)
    options = RetrainOptions(
        registry=not arguments.no_register,
        force=arguments.force,
        max_parallel=arguments.max_parallel,
        reason=reason,
        push=arguments.push,
        branch=arguments.branch,
    )
    if note := store_address.use_server():
        print(note, file=sys.stderr, flush=True)
    params_check.check(root)
    graph = dvc_graph.read(root)
    stale = graph.stale(options.force)
    release.check(graph, options, will_run=bool(stale))
    if arguments.dry_run:
        _print_stale(graph, stale)
        return 0
    if not stale and not options.publishes and (up_to_date := release.up_to_date(graph, options)):
        run_history.append(root, RunLine("retrain", reason, outcome=f"skipped: {up_to_date.state}"))
        print(f"Nothing to do: {up_to_date.state}.")
        _print_report(graph, up_to_date.result, start)
        return 0
    prefect_access.check()
    result = RetrainResult.from_dict(flow_process.run_flow(options))
    _print_report(graph, replace(result, table=stage_outputs.success_table(graph)), start)
    return 0


def _print_stale(graph: dvc_graph.Graph, stale: Mapping[str, tuple[str, ...]]) -> None:
    print(f"{len(stale)} of {len(graph.stages)} stages are out of date.")
    for name, reasons in stale.items():
        print(f"  {name}: {'; '.join(reasons)}")


def _print_report(graph: dvc_graph.Graph, result: RetrainResult, start: float) -> None:
    """Print the table of edit success and the places of all results."""
    if result.table:
        print("\n" + format_success(result.table))
    print()
    for path in graph.metrics:
        print(f"metrics     {path}")
    for stage in graph.stages:
        if stage.meta.get("report"):
            for image in sorted(file for out in stage.outs for file in (graph.root / out).rglob("*.png")):
                print(f"images      {image.relative_to(graph.root)}")
    if result.version:
        print(f"registered  {result.version.uri}" + ("" if result.is_new else " (as before)"))
    if result.decision:
        print(f"gate        {'champion' if result.decision.promote else 'challenger only'}: {result.decision.reason}")
    if result.run_id:
        place = os.environ.get(store_address.TRACKING_URI_ENV) or store_address.DATABASE
        print(f"run         {result.run_id} in {hide_password(place)}")
    total_s, stages_s = time.monotonic() - start, sum(result.seconds.values())
    in_stages = f", {stages_s:.0f} s of it in {len(result.seconds)} stages" if result.seconds else ""
    print(f"time        {total_s:.0f} s{in_stages}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retrain", description="Run the stages that are out of date, register the editor, apply the promotion gate.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only print which stages are out of date, and why")
    parser.add_argument("--no-register", action="store_true", help="do not register the model")
    parser.add_argument("--force", action="store_true", help="run every stage again")
    reasons = "reason of the run, with the prefix schedule:, data:, metric: or person: (default: person: and your name)"
    parser.add_argument("--reason", default="", metavar="TEXT", help=reasons)
    parser.add_argument("--push", action="store_true", help="push the data to the DVC remote afterwards, even if no stage ran")
    parser.add_argument("--branch", default="", metavar="NAME", help="commit dvc.lock and the metrics to this branch afterwards")
    parallel = "number of stages that may run in parallel (default: 1)"
    parser.add_argument("--max-parallel", type=_stage_count, default=1, metavar="N", help=parallel)
    return parser


def _stage_count(text: str) -> int:
    """Value of `--max-parallel`. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"want a number of stages of at least 1, got {text!r}; 1 runs one stage at a time")
    return int(text)


if __name__ == "__main__":
    console_main()
