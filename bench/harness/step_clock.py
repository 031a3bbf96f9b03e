"""The time of every training step of a process, and the peak memory."""

from __future__ import annotations

import json
import resource
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
        """Write samples per second (the median of the steps after `warm_up`) and the peak memory in GiB."""
        seconds = [after - before for before, after in zip(self.times, self.times[1:], strict=False)][warm_up:]
        file.write_text(json.dumps({"samples_per_second": batch / median(seconds), "peak_memory_gib": peak_memory_gib()}))


def peak_memory_gib() -> float:
    """On a GPU the peak memory of tensors, on a CPU the peak resident set of the process plus that of its largest child."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
