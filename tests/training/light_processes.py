"""Work for training processes that import no networks, and a parent of two of them."""

import os
import signal
import time
from multiprocessing.util import Finalize
from pathlib import Path

import torch
from torch import distributed

from emuedit.processes import prepare_workers
from emuedit.training.distributed import open_accelerator, run_distributed
from emuedit.training.optim.lr_schedule import LrSchedule
from emuedit.training.optim.optimization import STATE_FILE, Optimization
from emuedit.training.training_error import TrainingError
from tests.warm_server import fork_servers


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
        Finalize(None, time.sleep, (0.5,), exitpriority=0)  # runs after the connection was closed
        if failure == "run out of memory":
            raise MemoryError("no memory is left")
        raise TrainingError("want a finite loss, got nan")
    torch.distributed.all_reduce(torch.ones(2))


def write_rank(folder: str) -> None:
    """Write a file whose name says which process of how many this is, and the sum over all of rank + 1; it says how long the
    processes wait for each other."""
    with open_accelerator("cpu") as accelerator:
        rank = accelerator.process_index
        total = accelerator.reduce(torch.tensor(rank + 1.0), "sum").item()
        backend = distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        Path(folder, f"rank{rank} of {accelerator.num_processes}, sum {total}").write_text(str(backend.options._timeout))


def check_ranks(folder: Path) -> None:
    """Both processes of `write_rank` have found each other, and wait for each other for two hours."""
    files = {file.name: file.read_text() for file in folder.glob("rank*")}
    assert files == {"rank0 of 2, sum 3.0": "2:00:00", "rank1 of 2, sum 3.0": "2:00:00"}


def write_rank_and_fail(folder: str) -> None:
    """Write a file as `write_rank` does, then fail as `fail_in_process` does."""
    write_rank(folder)
    fail_in_process("want a finite loss, got nan")


def die_in_process() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def write_rank_and_die(folder: str) -> None:
    """Write a file whose name has the rank; then the second process is killed while the first one waits for its tensor."""
    with open_accelerator("cpu") as accelerator:
        Path(folder, f"rank{accelerator.process_index}").touch()
        if accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        accelerator.reduce(torch.ones(1), "sum")


def wait_in_process(folder: str) -> None:
    """Write a file whose name is the id of this process and whose text is its rank, and wait."""
    Path(folder, str(os.getpid())).write_text(os.environ["RANK"])
    time.sleep(60)


def train_while_interrupts_are_ignored(folder: str) -> None:
    """Run two training processes that wait, as a shell starts a training for `nohup ... &`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fork_servers()
    prepare_workers("cpu", (__name__,))
    run_distributed(2, "cpu", wait_in_process, folder)


def resume_with_state_in_one(folder: str) -> None:
    """Continue a training whose state is there for the first process alone, as for machines that share no folder."""
    with open_accelerator("cpu") as accelerator:
        file = Path(folder, str(accelerator.process_index), STATE_FILE)
        schedule = LrSchedule(steps=9, lr=0.1, warmup_steps=0, decay_share=0.0)
        optimization = Optimization(torch.nn.Linear(2, 1), schedule, weight_decay=0.0, max_grad_norm=1.0, accelerator=accelerator)
        optimization.step = 4
        if accelerator.is_main_process:
            file.parent.mkdir(parents=True)
            optimization.save(file)
        accelerator.wait_for_everyone()
        optimization.resume(file)
