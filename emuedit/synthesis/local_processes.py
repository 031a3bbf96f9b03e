"""Worker processes on this machine. They end with this process, whatever ends it."""

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

from emuedit.runtime import KEEP_FREED_MEMORY, available_cores, die_with_parent, set_env_defaults


class WorkerFailedError(RuntimeError):
    """Raised for a job that failed in a worker process, and for a worker that died."""


class ProcessGroup:
    """Processes that each do one job at a time."""

    def __init__(self, processes: int, build: Callable[[], Any], report: Callable[[str, float], None]) -> None:
        set_env_defaults(KEEP_FREED_MEMORY)
        context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads in an unknown state
        threads = max(1, available_cores() // processes)
        self._report = report
        self._workers: dict[Connection, Any] = {}
        try:
            for _ in range(processes):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, build, threads), daemon=True)
                process.start()
                there.close()
                self._workers[here] = process
        except BaseException:  # such as too many processes, or ctrl-c
            self.close()
            raise

    def do(self, jobs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """The results of jobs by name, as they are done. A job goes to the first worker that is free.

        Where the caller stops before the last result, workers finish what they have begun, and nobody reads it.
        """
        waiting, running = iter(jobs.items()), {}
        idle = list(self._workers)
        while True:
            while idle and (item := next(waiting, None)) is not None:
                pipe = idle.pop()
                with suppress(BrokenPipeError):  # the worker is gone; its last message, or the end of the pipe, is read below
                    pipe.send(item)
                running[pipe] = item[0]
            if not running:
                return
            for pipe in cast("list[Connection]", wait(list(running))):
                name = running[pipe]
                kind, of, value = self._receive(pipe, name)
                if kind == "error":
                    raise WorkerFailedError(f"in {of or name}: {value}")
                if of != name:  # a job of an earlier call that was not read to its end
                    continue
                if kind == "share":
                    self._report(name, value)
                    continue
                del running[pipe]
                idle.append(pipe)
                yield name, value

    def close(self) -> None:
        """End all workers, whatever they are doing: a job that is not finished is made again by the next run."""
        for pipe, process in self._workers.items():
            pipe.close()
            process.kill()
            process.join()

    def _receive(self, pipe: Connection, name: str) -> tuple[str, str, Any]:
        """The next message of the worker that makes `name`: its kind, job and value. Raises WorkerFailedError where it died."""
        try:
            message: tuple[str, str, Any] = pipe.recv()
        except (EOFError, OSError) as error:
            process = self._workers[pipe]
            process.join(1.0)
            raise WorkerFailedError(
                f"the worker process that made {name} died (exit status {process.exitcode}); where that is -9, memory often ran "
                "out: use fewer processes"
            ) from error
        return message


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
    name = ""

    def send(kind: str, value: Any) -> None:
        with lock:
            pipe.send((kind, name, value))

    try:
        import torch

        torch.set_num_threads(threads)
        work = build()
        while True:
            try:
                name, job = pipe.recv()
            except (EOFError, ConnectionResetError):  # the parent closed the pipe or is gone
                return
            send("result", work(job, partial(send, "share")))
    except Exception as error:  # whatever a job raises is sent to the parent, which raises it there
        explained = type(error).__module__.startswith(("emuedit", "toyworld"))
        with suppress(BrokenPipeError):  # the parent is gone
            send("error", str(error) if explained else f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
