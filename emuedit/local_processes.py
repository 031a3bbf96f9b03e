"""Worker processes on this machine. They end whenever this process ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from emuedit.failures import FailureKind, ProcessFailedError, explains_itself, kind_of
from emuedit.processes import available_cores, begin_worker, prepare_workers, start_method, visible_gpus


class WorkerFailedError(ProcessFailedError):
    """Raised for a failed job in a worker process, and for a dead worker."""


def _ignore_report(_name: str, _share: float) -> None:
    pass


class ProcessGroup:
    """Processes that each run one job at a time."""

    def __init__(self, processes: int, build: Callable[[], Any], report: Callable[[str, float], None], device: str) -> None:
        prepare_workers(device, ())
        context: Any = multiprocessing.get_context(start_method(device))
        n_threads = max(1, available_cores() // processes)
        self._report = report
        self._workers: dict[Connection, Any] = {}
        try:
            for number in range(processes):
                here, there = context.Pipe()
                environment = {**os.environ, **gpu_of_worker(device, number)}
                process = context.Process(target=_serve, args=(there, build, n_threads, environment), daemon=True)
                process.start()
                there.close()
                self._workers[here] = process
        except BaseException:  # e.g. too many processes, or ctrl-c
            self.close()
            raise

    def do(self, jobs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield (name, result) of jobs as they finish. A job goes to the first free worker.

        If the caller stops early, workers finish their current jobs, and the results are discarded.
        """
        waiting, running = iter(jobs.items()), {}
        idle = list(self._workers)
        while True:
            while idle and (item := next(waiting, None)) is not None:
                pipe = idle.pop()
                with suppress(BrokenPipeError):  # the worker died; its last message, or the end of the pipe, is read below
                    pipe.send(item)
                running[pipe] = item[0]
            if not running:
                return
            for pipe in cast("list[Connection]", wait(list(running))):
                name = running[pipe]
                kind, job, value = self._receive(pipe, name)
                if kind == "error":
                    raise WorkerFailedError(f"in {job or name}: {value[0]}", value[1])
                if job != name:  # a job of an earlier call whose results were not all read
                    continue
                if kind == "share":
                    self._report(name, value)
                    continue
                del running[pipe]
                idle.append(pipe)
                yield name, value

    def close(self) -> None:
        """Kill all workers; unfinished jobs are repeated by the next run."""
        for pipe, process in self._workers.items():
            pipe.close()
            process.kill()
            process.join()

    def _receive(self, pipe: Connection, name: str) -> tuple[str, str, Any]:
        """The next message (kind, job, value) of the worker of job `name`. Raises WorkerFailedError if it died."""
        try:
            message: tuple[str, str, Any] = pipe.recv()
        except (EOFError, OSError) as error:
            process = self._workers[pipe]
            process.join(1.0)
            raise WorkerFailedError(
                f"the worker process of {name} died (exit status {process.exitcode}; -9 often means out of memory: "
                "use fewer processes)",
                FailureKind.MEMORY if process.exitcode == -signal.SIGKILL else FailureKind.OTHER,
            ) from error
        return message


@contextmanager
def start(
    processes: int, build: Callable[[], Any], report: Callable[[str, float], None] = _ignore_report, device: str = "cpu"
) -> Iterator[ProcessGroup]:
    """Context manager with worker processes that compute on `device`."""
    group = ProcessGroup(processes, build, report, device)
    try:
        yield group
    finally:
        group.close()


def _serve(pipe: Connection, build: Callable[[], Any], n_threads: int, environment: Mapping[str, str]) -> None:
    """Main loop of a worker process."""
    lock = threading.Lock()
    name = ""

    def send(kind: str, value: Any) -> None:
        with lock:
            pipe.send((kind, name, value))

    try:
        begin_worker(n_threads, environment)
        work = build()
        while True:
            try:
                name, job = pipe.recv()
            except (EOFError, ConnectionResetError):  # the parent closed the pipe or ended
                return
            send("result", work(job, partial(send, "share")))
    except Exception as error:  # send any error of a job to the parent
        with suppress(BrokenPipeError):  # the parent ended
            send("error", (explain(error), kind_of(error)))


def gpu_of_worker(device: str, number: int) -> dict[str, str]:
    """Environment that assigns GPUs to workers round-robin if the device is 'cuda'; else empty."""
    gpus = visible_gpus() if device == "cuda" else []
    return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}


def explain(error: BaseException) -> str:
    """Format an error for another process: only the message for our errors, else with the traceback."""
    if explains_itself(error):
        return str(error)
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"
