"""Jobs for worker processes without any model. This module imports little, because every worker process imports it."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0


@dataclass(frozen=True)
class Job:
    """What a worker is to do with a number."""

    action: str
    number: int = 0
    wait_for: str = ""  # a file in the folder, which another job creates


def build_work(folder: Path) -> Callable[[Job, Callable[[float], None]], Any]:
    """Work that records in files which processes called this function, and which jobs were begun."""
    (folder / f"worker-{os.getpid()}").touch(exist_ok=False)
    return partial(do_job, folder)


def build_nothing() -> Any:
    raise ValueError("no models here")


def do_job(folder: Path, job: Job, report: Callable[[float], None]) -> Any:
    (folder / f"begun-{job.number}").touch(exist_ok=False)
    if job.action == "square":
        report(0.25)
        wait_until(lambda: not job.wait_for or (folder / job.wait_for).exists())
        report(0.75)
        (folder / f"done-{job.number}").touch()
        return job.number**2
    if job.action == "count threads":
        import torch

        return torch.get_num_threads()
    if job.action == "wait for ever":
        time.sleep(10 * DEADLINE_S)
    if job.action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise error_of(job)


def error_of(job: Job) -> Exception:
    """The error whose class is named by the action of the job."""
    from emuedit.config import ParamsError

    errors = {error.__name__: error for error in (ValueError, EOFError, BrokenPipeError, ParamsError, MemoryError)}
    return errors[job.action](f"cannot do {job.number}")


def keep_two_workers(folder: Path) -> None:
    """Start two workers. One becomes busy for ever, the other has nothing to do after its first job."""
    from emuedit import local_processes

    with local_processes.start(2, partial(build_work, folder), lambda name, share: None) as group:
        list(group.do({"shard-0": Job("square", 0), "shard-1": Job("wait for ever", 1)}))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"the condition of a test did not become true in {DEADLINE_S} s"
        time.sleep(0.005)


def worker_pids(folder: Path) -> set[int]:
    """Process ids of the workers that were built."""
    return {int(path.name.removeprefix("worker-")) for path in folder.glob("worker-*")}


def is_running(pid: int) -> bool:
    """Whether a process exists. One that has ended and that nobody has waited for does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):  # it ended just now, or this is not Linux
        return not Path("/proc/self").exists()
