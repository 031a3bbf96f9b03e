"""Does a training fit into the memory of its device? Asked before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from emuedit.training.memory_plan import GIB, MemoryEstimate

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
FRAGMENTATION = 0.05
"""Share of an allocator's memory that lies in gaps: a training this close to the limit may fail. Assumed."""


class MemoryFitError(RuntimeError):
    """Raised for a training that cannot fit into the memory of its device."""


def check_fits(
    estimate: MemoryEstimate, device: torch.device, savings: Callable[[], Mapping[str, int]] = dict, available: int | None = None
) -> str:
    """Raise MemoryFitError where a training cannot fit; returns a warning where it may not, else an empty text.

    What is certainly needed (`MemoryEstimate.certain`) is compared with what is there, without a safety margin: it is a lower
    bound, so nothing is refused that would fit. What depends on kernels and on gaps in the allocator's memory is in the warning.
    `savings` is called for the error only; `MemoryEstimator.savings` computes them. `available` bytes are measured if not
    given: on a GPU what is free or held by this process, on a CPU what all processes together may still take.
    """
    available = available_bytes(device) if available is None else available
    if available is None:
        return f"the memory of {device} cannot be read, so nothing checks that the training fits: {estimate}"
    n_sharing = estimate.plan.world_size if device.type == "cpu" else 1  # processes on a CPU share its memory
    certain, total = n_sharing * estimate.certain, n_sharing * (estimate.total - estimate.context)
    if certain <= available:
        is_close = total * (1 + FRAGMENTATION) > available
        return f"the training needs about {_gib(total)} of {_gib(available)} on {device} and may run out" if is_close else ""
    options = "; ".join(f"{change} saves {_gib(n)}" for change, n in savings().items()) or "a smaller model"
    raise MemoryFitError(
        f"want a training that fits into the {_gib(available)} that are free on {device}, got one that needs {_gib(certain)} "
        f"at least: {estimate}; change train: {options}"
    )


def available_bytes(device: torch.device) -> int | None:
    """Bytes that this process and those it starts may take on a device; None where that cannot be read.

    What this process holds counts as available, since it is part of the estimate or will be freed.
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
    """What the container's limit (cgroup v2) leaves; files that were read and may be dropped count as free."""
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if not limit.is_file() or not used.is_file() or limit.read_text().strip() == "max":
        return 2**63
    statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    return int(limit.read_text()) - int(used.read_text()) + int(statistics.get("inactive_file", 0))


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB"
