"""A fork server that has imported the heavy libraries, from which tests start processes in milliseconds."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, get_context, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from emuedit.processes import prepare_workers
from emuedit.training import accelerate_launch

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("tests.warm_modules",)
_warm_servers: set[int] = set()  # ids of their processes; a list of modules in `forkserver` is that of the last call


def warm_up() -> None:
    """Have Python's fork server of this process import MODULES, unless it did; a server that did not import them is replaced."""
    server = forkserver._forkserver
    if server._forkserver_pid is not None and server._forkserver_pid not in _warm_servers:
        server._stop()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with patch.dict(os.environ, PYTHONPATH=path):  # since it does not get `sys.path`
        prepare_workers("cpu", MODULES)
    _warm_servers.add(server._forkserver_pid)


def fork_servers() -> None:
    """In a process from that server: have the fork server that it starts be its fork, which need not import all of that again.

    It must not have started threads before.
    """
    start = util.spawnv_passfds

    def fork_or_start(path: str, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
        program = arguments[-1]  # of `python -c`
        if "multiprocessing.forkserver" not in program:
            return start(path, arguments, descriptors)
        if process := os.fork():
            return process
        try:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for descriptor in {int(entry.name) for entry in Path("/proc/self/fd").iterdir()} - {0, 1, 2, *descriptors}:
                with suppress(OSError):
                    os.close(descriptor)
            exec(program)
        finally:
            os._exit(0)

    util.spawnv_passfds = fork_or_start


def fork_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `run_accelerate` fork its launcher from that server: five seconds of a core less. Training processes are as always."""
    warm_up()

    def start(command: Sequence[str], **_: Any) -> SimpleNamespace:
        arguments = (command[command.index("launch") + 1 :], dict(os.environ), str(Path.cwd()))
        process = get_context("forkserver").Process(target=_launch, args=arguments)
        process.start()

        def wait() -> int | None:
            process.join()
            return process.exitcode

        return SimpleNamespace(pid=process.pid, wait=wait, poll=lambda: process.exitcode)

    names = SimpleNamespace(Popen=start, CalledProcessError=subprocess.CalledProcessError)
    monkeypatch.setattr(accelerate_launch, "subprocess", names)


def _launch(arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
    """What the launcher does in a process of its own."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # which the fork server blocks
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    config, call = arguments
    accelerate_launch._launch(config, Path(call))
