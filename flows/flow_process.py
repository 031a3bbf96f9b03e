"""Run the flow in a separate process, so that no process is left over if it, Prefect's server or a stage fails.

`retrain` calls `run_flow`, which starts `python -m flows.flow_process`, reads the result from a pipe, and kills all descendant
processes before it returns or raises. The flow's process exits when `retrain` or its Prefect server is killed.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from emuedit.processes import exit_process
from emuedit.tracking import moved_store, service_errors
from emuedit.tracking.service_errors import ServiceError, hide_password
from flows import prefect_access, process_guard
from flows.error_output import print_trace
from flows.retrain_options import RetrainOptions
from flows.stopping import Stopped, stop_on_signals

_STOP_S = 3.5  # time for a stopping flow to stop its stage and close its runs; then it is killed
_EXIT_S = 10.0  # time for a finished flow to stop its server


class FlowError(RuntimeError):
    """Raised when the flow failed; the first line of the message gives the reason."""


def run_flow(options: RetrainOptions) -> dict[str, Any]:
    """Run the flow and return its result, as from `RetrainResult.to_dict`.

    Raises FlowError if it failed or was killed, and Stopped if this process is asked to stop. No process is left in either case.
    """
    process_guard.adopt_orphans()
    source, sink = os.pipe()
    arguments = [f"--{name.replace('_', '-')}={json.dumps(value)}" for name, value in asdict(options).items()]
    command = [sys.executable, "-m", "flows.flow_process", f"--parent={os.getpid()}", f"--result={sink}", *arguments]
    child = subprocess.Popen(command, pass_fds=[sink], start_new_session=True, preexec_fn=_die_with_retrain)
    os.close(sink)
    answer = ""
    try:
        with open(source, encoding="utf-8") as stream:  # noqa: PTH123  a file descriptor
            answer = stream.read()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_EXIT_S)
    except Stopped:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_S)
        raise
    finally:
        child.poll()
        process_guard.end_descendants()
        if child.returncode is None:
            child.returncode = -signal.SIGKILL  # reaped by end_descendants
    if not answer:
        raise FlowError(f"the flow's process exited without a result ({_describe_exit(child.returncode)})")
    result: dict[str, Any] = json.loads(answer)
    if "error" in result:
        raise FlowError(result["error"])
    return result


def main() -> int:
    """Run the flow, write its result or error to the pipe, and kill all descendant processes."""
    options, parent, result = _parse_arguments()
    stop_on_signals()
    process_guard.adopt_orphans()
    if os.getppid() != parent:
        return 1
    report = _Report(result)
    try:
        report.send(_run(options, report))
    except Stopped:
        if os.getppid() != parent:
            print("\nretrain: its main process was killed; the same command resumes", file=sys.stderr, flush=True)
        _end(1)
    except BaseException as error:  # the outermost handler: send the error, print unexpected ones
        print_trace(error)
        report.send({"error": hide_password(str(error)) or type(error).__name__})
        _end(1)
    return 0


class _Report:
    """The writing end of the pipe; only the first report is sent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._lock = descriptor, threading.Lock()

    def send(self, result: dict[str, Any]) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.write(self._descriptor, json.dumps(result).encode())
                os.close(self._descriptor)
                self._descriptor = -1


def _run(options: RetrainOptions, report: _Report) -> dict[str, Any]:
    prefect_access.import_settings()
    from flows.local_server import local_server

    def fail(status: int) -> None:
        report.send({"error": f"the local Prefect server exited ({_describe_exit(status)})"})
        _end(1)

    with local_server(fail, meanwhile=_prepare):
        from flows import pipeline

        return pipeline.retrain(**asdict(options))


def _prepare() -> None:
    """Import what the flow needs, and create MLflow's database: half a minute where Python compiles the modules first."""
    from flows import pipeline  # noqa: F401

    with contextlib.suppress(ServiceError):  # the flow reports it
        moved_store.check(Path.cwd())
        service_errors.check()


def _end(status: int) -> NoReturn:
    """Kill all descendants and exit, without Prefect's clean-up, which may wait for a dead server."""
    process_guard.end_descendants()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _die_with_retrain() -> None:
    process_guard.die_with_parent(signal.SIGTERM)


def _describe_exit(status: int | None) -> str:
    if status is not None and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def _parse_arguments() -> tuple[RetrainOptions, int, int]:
    parser = argparse.ArgumentParser(prog="flow_process", description="Run the flow for `retrain`.")
    parser.add_argument("--parent", type=int, required=True, help="process id of `retrain`")
    parser.add_argument("--result", type=int, required=True, help="file descriptor to which the result is written")
    for field in fields(RetrainOptions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=json.loads, default=field.default)
    values = vars(parser.parse_args())
    parent, result = values.pop("parent"), values.pop("result")
    return RetrainOptions(**values), parent, result


if __name__ == "__main__":
    exit_process(main(), wait_for_threads=True)
