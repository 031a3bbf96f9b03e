"""Identify a user and a process, so that a recorded owner can be compared later."""

import getpass
import os
import socket
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
