"""Work for training processes that import no networks: they start in a third of the time."""

import atexit
import os
import signal
import time
from pathlib import Path

import torch

from emuedit.training.distributed import open_accelerator
from emuedit.training.training_error import TrainingError


def fail_in_process(message: str) -> None:
    """Raise an error of ours in the second process, or of Python without a message; the first one waits for it."""
    if os.environ["RANK"] == "1":
        raise TrainingError(message) if message else ZeroDivisionError("a bug")
    signal.pause()


def fail_while_the_others_wait(failure: str) -> None:
    """Let the second process raise one of two errors (and end slowly) or die while the first one waits for its tensor."""
    if os.environ["RANK"] == "1":
        if failure == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        atexit.register(time.sleep, 3)
        if failure == "run out of memory":
            raise MemoryError("no memory is left")
        raise TrainingError("want a finite loss, got nan")
    torch.distributed.all_reduce(torch.ones(2))


def write_rank(folder: str) -> None:
    """Write a file whose name says which process of how many this is, and the sum over all of rank + 1."""
    with open_accelerator("cpu") as accelerator:
        rank = accelerator.process_index
        total = accelerator.reduce(torch.tensor(rank + 1.0), "sum").item()
        Path(folder, f"rank{rank} of {accelerator.num_processes}, sum {total}").touch()
