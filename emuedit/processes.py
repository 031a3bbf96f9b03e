"""Start and end processes: environment, available cores, worker processes, exit.

On a CPU, workers are forked from a server that imports the heavy libraries while this process does other work. Importing torch
and diffusers takes 12 s of a core; a forked worker starts in milliseconds. On a GPU, workers are spawned, since a forked process
cannot use CUDA once its parent has initialised it.
"""

import atexit
import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal, NoReturn

QUIET_ENV = {
    "DIFFUSERS_VERBOSITY": "error",  # hides notes on configs; errors are raised anyway
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # a bar per file would hide ours
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # hides notes on database migrations
}
"""Environment variables that silence the libraries' own progress bars and notes."""

KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**31), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""Keep freed buffers (glibc, read when a process starts). Returning them to the system after every operator costs a sixth of a
training step on a CPU, and the same share of pair generation."""
CGROUP = Path("/sys/fs/cgroup")


def set_env_defaults(defaults: Mapping[str, str] = QUIET_ENV) -> None:
    """Set environment variables before libraries read them. Variables that the user has set are kept."""
    os.environ.update({name: value for name, value in defaults.items() if name not in os.environ})


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Within the block, environment variables have these values."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def keep_compiled_modules() -> None:
    """Write bytecode files in this process and its children, even if PYTHONDONTWRITEBYTECODE is set.

    Compiling all imports takes a process up to 23 s, and a retrain starts a dozen processes.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def available_cores() -> int:
    """CPU cores that this process may use: those of its affinity, and at most the quota of its container, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period_us = read_cgroup("cpu.max").partition(" ")  # microseconds per period
    return min(cores, max(1, math.ceil(int(quota) / int(period_us)))) if quota.isdecimal() else cores


def memory_capacity() -> int:
    """Memory of this machine, or the limit of its container, in bytes."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = read_cgroup("memory.max")
    return min(physical, int(limit)) if limit.isdecimal() else physical


def read_cgroup(name: str) -> str:
    """A file of the container's cgroup v2, empty if there is none; a limit is a number, or `max` for none."""
    file = CGROUP / name
    return file.read_text().strip() if file.is_file() else ""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, up to its first wrong entry."""
    import torch

    named, n_gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ""), torch.cuda.device_count()
    return named.split(",")[:n_gpus] if named else [str(i) for i in range(n_gpus)]


def open_missing_streams() -> None:
    """Connect standard output and error to the null device if the caller has closed them (`>&-`), where Python has None.

    Child processes inherit it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  open until the process ends
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def run_and_exit(main: Callable[[], int], wait_for_threads: bool = False) -> NoReturn:
    """`exit_process` with the status that `main` returns, or with that of argparse after --help or wrong arguments."""
    try:
        status = main()
    except SystemExit as error:
        if isinstance(error.code, str):
            raise
        status = error.code or 0
    exit_process(status, wait_for_threads)


def exit_process(status: int, wait_for_threads: bool = False) -> NoReturn:
    """Exit with a status after running the exit handlers, but skip the interpreter's teardown of modules.

    The teardown has no effect, and takes 2.5 s of a core with torch and diffusers, ten with MLflow and Prefect as well.
    wait_for_threads: whether to wait for running threads, as a normal exit does, such as those that send Prefect's events. If the
    buffered output cannot be written, such as to a full disk, that is one line on standard error, and status 0 becomes 1.
    """
    if wait_for_threads:
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:  # the reader of our output has ended
            pass
        except OSError as error:
            status = status or 1
            with contextlib.suppress(OSError):
                print(
                    f"want an output that can be written, got: {error.strerror}; write it elsewhere", file=sys.stderr, flush=True
                )
    os._exit(status)


def die_with_parent() -> None:
    """On Linux, have the kernel kill this process when the thread that started it ends. Elsewhere, do nothing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def prepare_workers(device: str, modules: Sequence[str]) -> None:
    """Start importing `modules` for workers that this process starts later; returns immediately.

    Only the first call in a process has an effect. `device` of the workers: 'cpu', 'cuda', 'cuda:1' or 'mps'.
    """
    set_env_defaults(KEEP_FREED_MEMORY)  # read by new processes
    if start_method(device) == "spawn":
        return
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # otherwise the fork server starts it, which unblocks SIGINT
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited, so that only this process handles ctrl-c
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def start_method(device: str) -> Literal["forkserver", "spawn"]:
    """Start method of workers that compute on `device`; neither copies this process's threads, whose state is unknown.

    macOS uses spawn: its system libraries start threads in the server, and a forked child crashes.
    """
    return "forkserver" if device == "cpu" and sys.platform == "linux" else "spawn"


def begin_worker(n_threads: int, environment: Mapping[str, str]) -> None:
    """Set up a worker process: ignore ctrl-c, end when the parent ends, compute with `n_threads` threads.

    `environment`: the parent's current one; the fork server has an older one.
    """
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches the whole process group
    threading.Thread(target=_end_with_parent, name="end with the parent", daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(n_threads)
    import torch

    torch.set_num_threads(n_threads)


def _end_with_parent() -> None:
    """Kill this worker when the process that requested it ends for any reason.

    `die_with_parent` would watch the fork server, which lives as long as any worker.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
