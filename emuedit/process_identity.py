"""Who asked for something, and by which process: what is written down now and compared later."""

import getpass
import os
import socket
from pathlib import Path

import psutil

WORKSPACE_ENV = "EMUEDIT_WORKSPACE_NAME"
"""Environment variable with a name of this machine that stays, for containers and pods, whose host names do not."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def start_mark(pid: int) -> str:
    """What tells a process from a later one with the same id; empty when there is no such process, or only its zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        if _BOOT_ID.exists():  # Linux: ticks since the start of the machine: no change of the clock alters them
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return f"{_BOOT_ID.read_text().strip()}:{fields[19]}"
        return f"{process.create_time():.2f}"
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return ""


def pid_space() -> str:
    """Within what a process id means one process: this start of the kernel and this PID namespace.

    Hosts of one name (virtual machines called `ubuntu`, containers in the host's network) have different ones. Where the system
    names neither (not Linux), the host's name and the time of its start must do.
    """
    try:
        return f"{_BOOT_ID.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"


def user_at_host() -> str:
    """`user@host` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def workspace(root: Path) -> str:
    """`machine:folder`, by which a retrain knows the runs that a killed one left open; the machine as WORKSPACE_ENV names it."""
    return f"{os.environ.get(WORKSPACE_ENV) or socket.gethostname()}:{root}"
