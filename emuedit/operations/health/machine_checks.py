"""Checks of the machine: number formats and their speed, disk, memory, file descriptors, clock."""

import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from emuedit.data.user_cache import cache_folder
from emuedit.operations.health.health_finding import Finding, Status

FOLDERS = ("data", "models", "scratch", "mlruns", ".emuedit")
"""Folders of a workspace whose size grows."""
_GB = 10**9
_LOW_DISK_GB, _FULL_DISK_GB = 20, 2
_LOW_MEMORY_GB = 4
_MIN_DESCRIPTORS = 1024
_MATRIX = 512
_ENOUGH_S = 0.15
_MAX_SKEW_S = 2.0


def check_number_formats() -> Iterator[Finding]:
    """Speed of a matrix product in each number format, and the choice of `dtype: auto`."""
    import torch

    from emuedit.number_format import measure
    from emuedit.runtime import Runtime

    runtime = Runtime.choose()
    speeds = {name: _gigaflops(getattr(torch, name), runtime.device) for name in ("float32", "bfloat16", "float16")}
    listed = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    detail = f"auto is {runtime}; GFLOP/s of a {_MATRIX} x {_MATRIX} product: {listed}"
    if runtime.device == "cpu" and (cache := cache_folder()) and (now := measure()).dtype != runtime.dtype:
        text = f"{detail}; measured now it would be {now}: the machine is busy now, or was at the first measurement"
        yield Finding("number formats", "warn", text, f"when the machine is idle, delete {cache / 'number-format'}")
    else:
        yield Finding("number formats", "pass", detail)


def check_disk() -> Iterator[Finding]:
    """Free space of each file system in use."""
    seen: set[int] = set()
    candidates = [*(Path(name) for name in FOLDERS), Path(), cache_folder(), Path(tempfile.gettempdir())]
    for folder in filter(None, candidates):
        present = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if (device := present.stat().st_dev) in seen:
            continue
        seen.add(device)
        free_gb = psutil.disk_usage(str(present)).free / _GB
        status: Status = "fail" if free_gb < _FULL_DISK_GB else "warn" if free_gb < _LOW_DISK_GB else "pass"
        fix = "delete scratch/, the caches named below, or `uv run dvc gc --workspace --all-commits`"
        yield Finding("disk", status, f"{free_gb:.0f} GB free for {present}", fix)


def check_memory() -> Iterator[Finding]:
    """Available memory."""
    memory = psutil.virtual_memory()
    detail = f"{memory.available / _GB:.1f} GB of {memory.total / _GB:.1f} GB available"
    status: Status = "warn" if memory.available < _LOW_MEMORY_GB * _GB else "pass"
    yield Finding("memory", status, detail, "close other programs, or use fewer workers: `processes: 1` in params.yaml")


def check_descriptors() -> Iterator[Finding]:
    """Limit of open files: servers and data loaders need many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    status: Status = "pass" if unlimited or soft >= _MIN_DESCRIPTORS else "warn"
    yield Finding(
        "open files", status, f"limit {'none' if unlimited else soft}", f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}"
    )


def check_clock() -> Iterator[Finding]:
    """The clock agrees with the file system's; on a network drive, files would otherwise have wrong ages."""
    with tempfile.NamedTemporaryFile(dir=Path() if os.access(Path(), os.W_OK) else None) as file:
        skew_s = Path(file.name).stat().st_mtime - time.time()
    if abs(skew_s) > _MAX_SKEW_S:
        yield Finding(
            "clock", "warn", f"differs from that of the file system by {skew_s:.0f} s", "synchronise both with a time server"
        )
    else:
        yield Finding("clock", "pass", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def _gigaflops(dtype: object, device: str) -> float:
    import torch

    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(_MATRIX, _MATRIX, generator=generator).to(device, dtype)  # type: ignore[call-overload]
    n_products, start = 0, time.perf_counter()
    with torch.inference_mode():
        while (seconds := time.perf_counter() - start) < _ENOUGH_S:
            float((matrix @ matrix)[0, 0])  # waits for a GPU
            n_products += 1
    return float(2 * _MATRIX**3 * n_products / seconds / 1e9)


CHECKS = (check_number_formats, check_disk, check_memory, check_descriptors, check_clock)
