"""Worker processes on this machine. They end with this process, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from emuedit.runtime import available_cores, die_with_parent


class WorkerFailedError(RuntimeError):
    """Raised for a job that failed in a worker process, and for a worker that died."""


class ProcessGroup:
    """Processes that each do one job at a time."""

    def __init__(self, processes: int, build: Callable[[], Any], report: Callable[[str, float], None]) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads in an unknown state
        threads = max(1, available_cores() // processes)
        self._report = report
        self._workers: dict[Connection, Any] = {}
        for _ in range(processes):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, build, threads), daemon=True)
            process.start()
            there.close()
            self._workers[here] = process

    def do(self, jobs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """The results of jobs by name, as they are done. A job goes to the first worker that is free."""
        waiting, running = iter(jobs.items()), {}
        idle = list(self._workers)
        while True:
            while idle and (item := next(waiting, None)) is not None:
                pipe = idle.pop()
                pipe.send(item)
                running[pipe] = item[0]
            if not running:
                return
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                name = running[pipe]
                try:
                    kind, value = pipe.recv()
                except EOFError as error:
                    status = self._exit_status(pipe)
                    raise WorkerFailedError(f"the worker process that made {name} died (exit status {status})") from error
                if kind == "share":
                    self._report(name, value)
                    continue
                if kind == "error":
                    raise WorkerFailedError(f"in {name}: {value}")
                del running[pipe]
                idle.append(pipe)
                yield name, value

    def close(self) -> None:
        """End all workers, whatever they are doing: a job that is not finished is made again by the next run."""
        for pipe, process in self._workers.items():
            pipe.close()
            process.kill()
            process.join()

    def _exit_status(self, pipe: Connection) -> int | None:
        process = self._workers[pipe]
        process.join(1.0)
        status: int | None = process.exitcode
        return status


@contextmanager
def start(processes: int, build: Callable[[], Any], report: Callable[[str, float], None]) -> Iterator[ProcessGroup]:
    """Worker processes for the length of a `with` block."""
    group = ProcessGroup(processes, build, report)
    try:
        yield group
    finally:
        group.close()


def _serve(pipe: Connection, build: Callable[[], Any], threads: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches the whole process group; the parent decides
    die_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    lock = threading.Lock()

    def send(kind: str, value: Any) -> None:
        with lock:
            pipe.send((kind, value))

    try:
        import torch

        torch.set_num_threads(threads)
        work = build()
        while True:
            _, job = pipe.recv()
            send("result", work(job, partial(send, "share")))
    except (EOFError, BrokenPipeError):  # the parent closed the pipe or is gone
        return
    except Exception as error:  # whatever a job raises is sent to the parent, which raises it there
        explained = type(error).__module__.startswith(("emuedit", "toyworld"))
        send("error", str(error) if explained else f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
