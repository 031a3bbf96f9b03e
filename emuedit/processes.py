"""How the processes of this project start and end: their environment, the cores they may use, worker processes, the exit.

On a CPU, workers are forked from a server that has imported the heavy libraries while this process was doing other work:
importing torch and diffusers takes 12 s of a core, and so each worker starts in milliseconds. On a GPU they are spawned, since
a forked process cannot use a CUDA that its parent has touched.
"""

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from typing import Literal, NoReturn

QUIET_ENV = {
    "DIFFUSERS_VERBOSITY": "error",  # notes on configs; what matters is raised
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # a bar for each of a dozen small files would hide our own
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # notes on migrations of its database
}
"""Environment variables that silence the libraries' own progress bars and notes."""

KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**31), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""For glibc, read when a process starts: keep freed buffers. Returned to the system after every operator and allocated again,
they cost a sixth of a step of training on a CPU, and as much of generating pairs."""


def set_env_defaults(defaults: Mapping[str, str] = QUIET_ENV) -> None:
    """Set environment variables that are not set, before libraries read them. What the user set stays."""
    os.environ.update({name: value for name, value in defaults.items() if name not in os.environ})


def keep_compiled_modules() -> None:
    """Write what is compiled from now on, in this process and in those it starts, whatever PYTHONDONTWRITEBYTECODE says.

    Compiling what it imports takes a process up to 23 s, and a retrain has a dozen processes.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def leave(status: int) -> NoReturn:
    """End this process with an exit status, after its exit handlers, but without taking every module apart.

    With torch and diffusers imported, that last part of a normal exit takes 2.5 s of a core and changes nothing. Threads that
    still run are not waited for.
    """
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):  # whoever read our output has ended
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def die_with_parent() -> None:
    """On Linux, have the kernel kill this process when the thread that started it ends. Elsewhere, do nothing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def prepare_workers(device: str, modules: Sequence[str]) -> None:
    """Begin to import `modules`, and what they import, for workers that this process starts later; returns at once.

    The first call in a process counts. `device` is where the workers compute: 'cpu', 'cuda', 'cuda:1' or 'mps'.
    """
    set_env_defaults(KEEP_FREED_MEMORY)  # read by new processes
    if start_method(device) == "spawn":
        return
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # which the fork server would start, and which unblocks SIGINT
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited: on ctrl-c this process decides
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def start_method(device: str) -> Literal["forkserver", "spawn"]:
    """How workers that compute on `device` start; both leave them without this process's threads, whose state is unknown.

    On macOS they are spawned: its system libraries start threads of their own in the server, which a fork does not survive.
    """
    return "forkserver" if device == "cpu" and sys.platform == "linux" else "spawn"


def begin_worker(n_threads: int, environment: Mapping[str, str]) -> None:
    """In a worker process, first: leave ctrl-c to the parent, end when the parent ends, compute with `n_threads` threads.

    `environment`: that of the parent now; the fork server has an earlier one.
    """
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches the whole process group
    threading.Thread(target=_end_with_parent, name="end with the parent", daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(n_threads)
    import torch

    torch.set_num_threads(n_threads)


def _end_with_parent() -> None:
    """Kill this worker when the process that asked for it has ended, whatever ended it.

    `die_with_parent` would tell of the end of the fork server, which lives as long as a worker does.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
