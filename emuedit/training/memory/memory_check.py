"""Check before a training starts whether it fits into the device's memory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import torch

from emuedit.processes import memory_capacity, read_cgroup
from emuedit.training.memory.memory_plan import GIB, MemoryEstimate

_PROC = Path("/proc")
_N_USERS = 3  # processes that an error lists
FRAGMENTATION = 0.05
"""Assumed fragmentation of the allocator's memory: a training this close to the limit may fail."""


class MemoryFitError(RuntimeError):
    """Raised for a training that cannot fit into the device's memory."""


class DeviceBusyError(MemoryFitError, MemoryError):
    """Raised for a training that would fit if other processes did not use the device. It is retried, as a MemoryError."""


def check_fits(
    estimate: MemoryEstimate,
    device: torch.device,
    savings: Callable[[], Mapping[str, int]] = dict,
    available: int | None = None,
    capacity: int | None = None,
) -> str:
    """Raise MemoryFitError if a training cannot fit, DeviceBusyError if it would fit into an empty device.

    Returns a warning if it may not fit, else an empty string.

    The certain part (`MemoryEstimate.certain`) is compared with the available memory without a safety margin: it is a lower
    bound, so no training that fits is rejected. The warning includes what depends on kernels and fragmentation. `savings` is
    called only for the error; `MemoryEstimator.savings` computes them. `available` bytes are measured by default: on a GPU the
    memory that is free or used by this process, on a CPU the memory that all processes together can still use. `capacity` is the
    memory of the empty device, by default measured too.
    """
    available = available_bytes(device) if available is None else available
    if available is None:
        return f"the memory of {device} cannot be read, so it is not checked that the training fits: {estimate}"
    n_sharing = estimate.plan.world_size if device.type == "cpu" else 1  # processes on a CPU share its memory
    certain, total = n_sharing * estimate.certain, n_sharing * (estimate.total - estimate.context)
    if certain <= available:
        is_close = total * (1 + FRAGMENTATION) > available
        return f"the training needs about {_gib(total)} of {_gib(available)} on {device} and may run out" if is_close else ""
    capacity = capacity_bytes(device) if capacity is None else capacity
    if certain <= capacity:
        users = ", ".join(device_users(device)) or "unknown"
        raise DeviceBusyError(
            f"want {_gib(certain)} free memory on {device}, got {_gib(available)} of {_gib(capacity)}; its users: {users}; wait "
            f"until they end, or use another device; the training needs {estimate}"
        )
    options = "; ".join(f"{change} saves {_gib(n)}" for change, n in savings().items()) or "a smaller model"
    raise MemoryFitError(
        f"want a training that fits into {_gib(capacity)} memory of {device}, got one that needs at least {_gib(certain)}"
        f": {estimate}; change train: {options}"
    )


def available_bytes(device: torch.device) -> int | None:
    """Bytes available to this process and its children on a device; None if that cannot be read.

    Memory used by this process counts as available, since it is part of the estimate or will be freed.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    if device.type != "cpu" or not (_PROC / "meminfo").is_file():
        return None
    free = min(_kib_field(_PROC / "meminfo", "MemAvailable"), _cgroup_bytes())
    return free + _kib_field(_PROC / "self/status", "VmRSS")


def capacity_bytes(device: torch.device) -> int:
    """Memory of a GPU, or of this machine or container."""
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        return total
    return memory_capacity()


def device_users(device: torch.device) -> list[str]:
    """The largest processes on a device, as `name (process id, GiB)`; on a GPU as far as nvidia-smi lists them."""
    if device.type == "cuda":
        return _gpu_users(torch.cuda.get_device_properties(device).uuid)
    processes = psutil.process_iter(["pid", "name", "memory_info"])
    resident = {(p.info["name"], p.info["pid"]): p.info["memory_info"].rss for p in processes if p.info["memory_info"]}
    largest = sorted(resident.items(), key=lambda item: -item[1])[:_N_USERS]
    return [f"{name} ({pid}, {_gib(n_bytes)})" for (name, pid), n_bytes in largest]


def _gpu_users(uuid: object) -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--id=GPU-{uuid}", "--query-compute-apps=process_name,pid,used_memory", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout.splitlines()  # noqa: S603
    rows = [line.rsplit(", ", 2) for line in lines if line.count(", ") >= 2]
    return [f"{Path(name).name} ({pid}, {memory})" for name, pid, memory in rows][:_N_USERS]


def _kib_field(file: Path, name: str) -> int:
    """Bytes of a line `name: n kB`."""
    values = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return int(values[name].split()[0]) * 1024


def _cgroup_bytes() -> int:
    """Remaining bytes of the container's limit (cgroup v2); page cache that can be dropped counts as free."""
    limit, used = read_cgroup("memory.max"), read_cgroup("memory.current")
    if not (limit.isdecimal() and used):
        return 2**63
    statistics = dict(line.split() for line in read_cgroup("memory.stat").splitlines())
    return int(limit) - int(used) + int(statistics.get("inactive_file", 0))


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB"
