"""Identify a user and a process, so that a recorded owner can be compared later, and notice that its heartbeats stopped."""

import getpass
import os
import socket
import time
from collections.abc import Hashable
from pathlib import Path

import psutil

WORKSPACE_ENV = "EMUEDIT_WORKSPACE_NAME"
"""Environment variable with a stable machine name, for containers and pods whose host names change."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def start_mark(pid: int) -> str:
    """Distinguishes a process from a later one with the same id; empty if there is no such process, or only a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        if _BOOT_ID.exists():  # Linux: ticks since boot, which clock changes do not affect
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return f"{_BOOT_ID.read_text().strip()}:{fields[19]}"
        return f"{process.create_time():.2f}"
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return ""


def pid_space() -> str:
    """Scope within which process ids are unique: this boot and this PID namespace.

    Hosts with the same name (virtual machines called `ubuntu`, containers in the host's network) have different values. On
    systems that provide neither (not Linux), host name and boot time are used.
    """
    try:
        return f"{_BOOT_ID.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"


def boot_id(space: str) -> str:
    """The boot in a `pid_space`; empty if it has none, as on systems that are not Linux."""
    boot, _, namespace = space.partition("/")
    return boot if namespace.startswith("pid:") else ""


def user_at_host() -> str:
    """`user@host` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def workspace(root: Path) -> str:
    """`machine:folder`, by which a retrain finds runs left open by a killed one; machine: WORKSPACE_ENV or the host name."""
    return f"{os.environ.get(WORKSPACE_ENV) or socket.gethostname()}:{root}"


class UnchangedTimer:
    """Measures how long heartbeats stay unchanged, by the monotonic clock of this machine.

    The time that a heartbeat contains is only compared for equality: it may come from another machine, whose clock may differ.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[object, float]] = {}

    def seconds(self, name: Hashable, heartbeat: object) -> float:
        """Seconds since this heartbeat was first seen under this name; 0 at the first call and after a change."""
        now_s = time.monotonic()
        last, since_s = self._seen.get(name, (heartbeat, now_s))
        if last != heartbeat:
            since_s = now_s
        self._seen[name] = (heartbeat, since_s)
        return now_s - since_s
