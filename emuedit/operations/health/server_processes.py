"""Processes of this machine that `emuedit doctor` examines: servers by their port, workers, and stages of killed retrains."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from emuedit.http_requests import is_local

_STAGE_ENV = "DVC_STAGE"  # DVC sets it for the command of a stage
_PARENTS = ("dvc", "process_guard.py")


@dataclass(frozen=True)
class ServerProcess:
    """A process: its id, command line and environment."""

    pid: int
    words: Sequence[str]
    environment: dict[str, str]


def processes_with(*words: str) -> Iterator[ServerProcess]:
    """Processes whose command line has these words in this order, with nothing between them; none of other users."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            names = [Path(word).name for word in process.cmdline()]
            starts = range(len(names) - len(words) + 1)
            if any(tuple(names[start : start + len(words)]) == words for start in starts):
                yield ServerProcess(process.pid, process.cmdline(), process.environ())


def find_server(url: str, *words: str) -> ServerProcess | None:
    """The process of this machine that serves a URL, started by a command line with these words and the port; None if unknown."""
    if not is_local(url):
        return None
    port = urlsplit(url).port
    ports = {str(port), f"--port={port}"}
    return next((process for process in processes_with(*words) if ports.intersection(process.words)), None)


def orphaned_stages(folder: Path) -> list[psutil.Process]:
    """Processes of stages in a folder without the DVC that started them: it was killed, and they still write their outputs."""
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError):
            if process.environ().get(_STAGE_ENV) and Path(process.cwd()).samefile(folder) and not _has_parent(process, _PARENTS):
                orphans.append(process)
    return orphans


def _has_parent(process: psutil.Process, names: Collection[str]) -> bool:
    """Whether an ancestor's command line has one of these names."""
    for parent in process.parents():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(Path(word).name in names for word in parent.cmdline()):
                return True
    return False
