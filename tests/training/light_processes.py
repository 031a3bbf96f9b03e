"""Work for training processes that import no networks: they start in a third of the time."""

import os
import signal
from pathlib import Path

import torch

from emuedit.training.distributed import open_accelerator
from emuedit.training.training_error import TrainingError


def fail_in_process(message: str) -> None:
    """Raise an error of ours in the second process, or of Python without a message; the first one waits for it."""
    if os.environ["RANK"] == "1":
        raise TrainingError(message) if message else ZeroDivisionError("a bug")
    signal.pause()


def write_rank(folder: str) -> None:
    """Write a file whose name says which process of how many this is, and the sum over all of rank + 1."""
    with open_accelerator("cpu") as accelerator:
        rank = accelerator.process_index
        total = accelerator.reduce(torch.tensor(rank + 1.0), "sum").item()
        Path(folder, f"rank{rank} of {accelerator.num_processes}, sum {total}").touch()
