"""The time of every training step of a process, and its peak memory on a GPU."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median

import torch


class StepClock:
    """Call `tick` after every step."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def tick(self) -> None:
        """Record the end of a step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def write(self, file: Path, batch: int, warm_up: int) -> None:
        """Write samples per second (the median of the steps after `warm_up`) and on a GPU the peak memory in GiB."""
        seconds = [after - before for before, after in zip(self.times, self.times[1:], strict=False)][warm_up:]
        file.write_text(json.dumps({"samples_per_second": batch / median(seconds)} | peak_gpu_memory()))


def peak_gpu_memory() -> dict[str, float]:
    """`peak_memory_gib`, the peak memory of tensors on a GPU; nothing on a CPU, where `session_memory` measures it."""
    return {"peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}
