"""Choose a fast and correct number format for a CPU by a timed probe, cached per machine.

bfloat16 without AVX-512 or AMX is tens to hundreds of times slower than float32 (pytorch#146508, #183815), and has given wrong
results for some convolutions (pytorch#163347, #169688). CPU flags do not show the speed, so the
probe runs a convolution and a matrix product of the sizes that a small U-Net has, in both formats, and compares.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MIN_SPEEDUP = 1.1
"""Use bfloat16 only if it is at least this many times as fast as float32. Ours."""
MAX_ERROR = 0.02
"""Largest allowed relative error in bfloat16; its rounding error is about 0.004. Ours."""
_FORMATS = ("float32", "bfloat16")
_ROUNDS, _ENOUGH_S = 5, 0.02
_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


@dataclass(frozen=True)
class ProbeResult:
    """Result of the probe. `speedup`: time in float32 divided by time in bfloat16, in [0, inf)."""

    dtype: str
    speedup: float
    error: float

    def __str__(self) -> str:
        return (
            f"{self.dtype} (bfloat16 runs at {self.speedup:.2f} times the speed of float32 here, relative error {self.error:.4f})"
        )


def probe() -> ProbeResult:
    """Measure, or read the cached result for this machine, torch version, thread count and instruction-set limits."""
    cache = _cache_file()
    try:
        result = ProbeResult(**json.loads(cache.read_text()))
        if result.dtype in _FORMATS:
            return result
    except (OSError, ValueError, TypeError):  # not measured yet, or not written by `probe`
        pass
    result = measure()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(result)))
        partial.replace(cache)
    except OSError:  # read-only home: measure again next time (milliseconds)
        pass
    return result


def measure() -> ProbeResult:
    """Time one convolution and one matrix product in both formats; tens of milliseconds."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    image, kernel = torch.randn(4, 64, 16, 16, generator=generator), torch.randn(64, 64, 3, 3, generator=generator) / 24
    tokens, weight = torch.randn(512, 192, generator=generator), torch.randn(192, 192, generator=generator) / 14
    work: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = [
        (lambda x, w: F.conv2d(x, w, padding=1), image, kernel),
        (torch.matmul, tokens, weight),
    ]
    seconds, errors = dict.fromkeys(_FORMATS, 0.0), []
    with torch.inference_mode():
        for operation, left, right in work:
            halves = left.bfloat16(), right.bfloat16()
            exact = operation(halves[0].float(), halves[1].float())
            errors.append(float((operation(*halves).float() - exact).norm() / exact.norm()))
            seconds["float32"] += _fastest(lambda op=operation, a=left, b=right: op(a, b))  # type: ignore[misc]
            seconds["bfloat16"] += _fastest(lambda op=operation, a=halves[0], b=halves[1]: op(a, b))  # type: ignore[misc]
    speedup, error = seconds["float32"] / seconds["bfloat16"], float(torch.tensor(errors).max())  # NaN if any is NaN
    faster = speedup >= MIN_SPEEDUP and error <= MAX_ERROR  # a comparison with NaN is False
    return ProbeResult("bfloat16" if faster else "float32", round(speedup, 3), round(error, 5))


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs; a slow run is not repeated."""
    times: list[float] = []
    while len(times) < _ROUNDS and sum(times) < _ENOUGH_S:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _cache_file() -> Path:
    """One file for each machine, torch version, number of threads and instruction-set limit."""
    import torch

    limits = [os.environ.get(name, "") for name in _ISA_VARIABLES]
    key = json.dumps([_cpu_model(), torch.__version__, torch.get_num_threads(), *limits])
    try:  # as emuedit/data/user_cache.py, which this cannot import
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no HOME, and no entry in the user database: nothing is cached
        home = os.devnull
    return Path(home, "emuedit", "number-format", f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.json")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = ("model name", "flags")
    return "|".join(next((line for line in lines if line.startswith(name)), "") for name in fields)
