"""Processes that train together end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from emuedit.training import distributed
from emuedit.training.distributed import DistributedError, TrainingProcess, n_processes, run_distributed
from tests.training.tiny_training import fail_in_process

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from emuedit.training.distributed import run_distributed
def work(process, folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `nohup ... &`
    run_distributed(2, work, sys.argv[1])
"""


@pytest.mark.slow
def test_training_processes_die_with_their_parent_even_where_interrupts_are_ignored(tmp_path: Path) -> None:
    """Otherwise they would go on training beside the next run, in the same folder."""
    script, alive = tmp_path / "script.py", tmp_path / "alive"
    script.write_text(SCRIPT)
    alive.mkdir()
    parent = subprocess.Popen([sys.executable, script, alive], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 90
    while len(pids := [int(file.name) for file in alive.iterdir()]) < 2:
        assert parent.poll() is None, "the parent ended before its processes were there"
        assert time.monotonic() < until, "its processes did not start"
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    try:
        while any(Path("/proc", str(pid)).exists() for pid in pids):
            assert time.monotonic() < until, "they outlived their parent"
            time.sleep(0.1)
    finally:
        for pid in pids:
            if Path("/proc", str(pid)).exists():
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_failure_in_one_process_ends_all_and_is_explained() -> None:
    with pytest.raises(DistributedError, match=r"^a training process failed: want a finite loss, got nan$"):
        run_distributed(2, fail_in_process, "want a finite loss, got nan")
    with pytest.raises(DistributedError, match=r"(?s)a training process failed: .*fail_in_process.*ZeroDivisionError: a bug$"):
        run_distributed(2, fail_in_process, "")


def test_the_shards_of_all_processes_make_up_the_batch() -> None:
    rows = list(range(12))
    for world_size in (1, 2, 3, 4):
        shards = [rows[TrainingProcess(rank, world_size).shard(12)] for rank in range(world_size)]
        assert [row for shard in shards for row in shard] == rows
        assert len({len(shard) for shard in shards}) == 1
    with pytest.raises(ValueError, match="want a batch that 3 processes can split evenly, got 4; choose a multiple of 3"):
        TrainingProcess(0, 3).shard(4)


def test_only_the_first_process_is_the_main_one() -> None:
    assert [TrainingProcess(rank, 3).is_main_process for rank in range(3)] == [True, False, False]


def test_one_process_alone_keeps_its_gradients() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    assert TrainingProcess().average_gradients(torch.tensor(0.5), [weight], torch.bfloat16) == 0.5
    assert weight.grad.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("requested", "batch_size", "device", "cores", "want"),
    [
        (3, 16, "cpu", 8, 3), (0, 16, "cpu", 1, 1), (0, 16, "cpu", 3, 2), (0, 16, "cpu", 8, 8), (0, 15, "cpu", 4, 3),
        (0, 16, "cuda", 8, 1), (2, 16, "cuda", 8, 2),
    ],
)  # fmt: skip
def test_the_number_of_processes(
    requested: int, batch_size: int, device: str, cores: int, want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "available_cores", lambda: cores)
    assert n_processes(requested, batch_size, device) == want
