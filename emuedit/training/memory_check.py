"""Check before a training starts whether it fits into the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from emuedit.training.memory_plan import GIB, MemoryEstimate

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
FRAGMENTATION = 0.05
"""Assumed fragmentation of the allocator's memory: a training this close to the limit may fail."""


class MemoryFitError(RuntimeError):
    """Raised for a training that cannot fit into the device's memory."""


def check_fits(
    estimate: MemoryEstimate, device: torch.device, savings: Callable[[], Mapping[str, int]] = dict, available: int | None = None
) -> str:
    """Raise MemoryFitError if a training cannot fit. Returns a warning if it may not fit, else an empty string.

    The certain part (`MemoryEstimate.certain`) is compared with the available memory without a safety margin: it is a lower
    bound, so no training that fits is rejected. The warning includes what depends on kernels and fragmentation. `savings` is
    called only for the error; `MemoryEstimator.savings` computes them. `available` bytes are measured by default: on a GPU the
    memory that is free or used by this process, on a CPU the memory that all processes together can still use.
    """
    available = available_bytes(device) if available is None else available
    if available is None:
        return f"the memory of {device} cannot be read, so it is not checked that the training fits: {estimate}"
    n_sharing = estimate.plan.world_size if device.type == "cpu" else 1  # processes on a CPU share its memory
    certain, total = n_sharing * estimate.certain, n_sharing * (estimate.total - estimate.context)
    if certain <= available:
        is_close = total * (1 + FRAGMENTATION) > available
        return f"the training needs about {_gib(total)} of {_gib(available)} on {device} and may run out" if is_close else ""
    options = "; ".join(f"{change} saves {_gib(n)}" for change, n in savings().items()) or "a smaller model"
    raise MemoryFitError(
        f"want a training that fits into {_gib(available)} free memory on {device}, got one that needs at least {_gib(certain)}"
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


def _kib_field(file: Path, name: str) -> int:
    """Bytes of a line `name: n kB`."""
    values = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return int(values[name].split()[0]) * 1024


def _cgroup_bytes() -> int:
    """Remaining bytes of the container's limit (cgroup v2); page cache that can be dropped counts as free."""
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if not limit.is_file() or not used.is_file() or limit.read_text().strip() == "max":
        return 2**63
    statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    return int(limit.read_text()) - int(used.read_text()) + int(statistics.get("inactive_file", 0))


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB"
