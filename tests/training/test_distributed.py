"""Processes that train together end together."""

import os
import signal
import time
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch

from emuedit.failures import FailureKind
from emuedit.training import distributed
from emuedit.training.distributed import (
    DistributedError,
    n_passes,
    n_processes,
    open_accelerator,
    run_distributed,
    shard,
)
from emuedit.training.presets import preset_names, with_preset
from tests.training.light_processes import (
    check_ranks,
    fail_in_process,
    fail_while_the_others_wait,
    resume_with_state_in_one,
    train_while_interrupts_are_ignored,
    write_rank,
)
from tests.warm_server import warm_up


@pytest.fixture(autouse=True)
def warm_server() -> None:
    """Training processes start in milliseconds."""
    warm_up()


@pytest.mark.slow
def test_training_processes_die_with_their_parent_even_where_interrupts_are_ignored(tmp_path: Path) -> None:
    """Otherwise they would go on training beside the next run, in the same folder."""
    parent = get_context("forkserver").Process(target=train_while_interrupts_are_ignored, args=(str(tmp_path),))
    parent.start()
    until = time.monotonic() + 90
    while len(pids := [int(file.name) for file in tmp_path.iterdir()]) < 2:
        assert parent.is_alive(), "the parent ended before its processes were there"
        assert time.monotonic() < until, "its processes did not start"
        time.sleep(0.1)
    parent.kill()
    parent.join()
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
        run_distributed(2, "cpu", fail_in_process, "want a finite loss, got nan")
    with pytest.raises(DistributedError, match=r"(?s)a training process failed: .*fail_in_process.*ZeroDivisionError: a bug$"):
        run_distributed(2, "cpu", fail_in_process, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "message", "kind"),
    [
        ("raise", r"^a training process failed: want a finite loss, got nan$", FailureKind.OTHER),
        ("die", r"^a training process died \(process 1 by SIGKILL, perhaps because memory ran out\)$", FailureKind.MEMORY),
        ("run out of memory", r"a training process failed: (.|\n)*MemoryError: no memory is left$", FailureKind.MEMORY),
    ],
)
def test_the_first_failure_is_shown_not_the_connections_that_the_others_lost(
    failure: str, message: str, kind: FailureKind
) -> None:
    with pytest.raises(DistributedError, match=message) as error:
        run_distributed(2, "cpu", fail_while_the_others_wait, failure)
    assert error.value.kind is kind


def test_the_shards_of_all_processes_make_up_the_batch() -> None:
    rows = list(range(12))
    for world_size in (1, 2, 3, 4):
        shards = [rows[shard(12, rank, world_size)] for rank in range(world_size)]
        assert [row for part in shards for row in part] == rows
        assert len({len(part) for part in shards}) == 1
    with pytest.raises(ValueError, match="want a batch that 3 processes can split evenly, got 4; choose a multiple of 3"):
        shard(4, 0, 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trainings_with_other_settings_may_follow_each_other(dtype: str) -> None:
    with open_accelerator("cpu", dtype) as accelerator:
        assert accelerator.device == torch.device("cpu")
        assert (accelerator.num_processes, accelerator.is_main_process) == (1, True)
        with accelerator.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("device", "hook"), [("cpu", "no"), ("cuda:0", "bf16")])
def test_only_gradients_of_gpus_are_exchanged_in_bfloat16(device: str, hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without CUDA cannot register the hook."""
    handlers: list[Any] = []

    def open_on_device(kwargs_handlers: list[Any], **options: Any) -> SimpleNamespace:
        handlers.extend(kwargs_handlers)
        return SimpleNamespace(device=torch.device(device), is_fsdp2=False)

    monkeypatch.setattr(accelerate, "Accelerator", open_on_device)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    with open_accelerator(device, "bfloat16"):
        assert handlers[0].comm_hook.value == hook


@pytest.mark.slow
def test_processes_of_which_one_alone_has_a_state_do_not_train_on(tmp_path: Path) -> None:
    """Machines that share no folder would train the first weights and those of the fourth step together."""
    with pytest.raises(
        DistributedError, match=r"want the same state in all processes, got the steps \[4, 0\] .*; share the folder"
    ):
        run_distributed(2, "cpu", resume_with_state_in_one, str(tmp_path))


@pytest.mark.slow
def test_processes_of_this_machine_wait_for_a_long_preview(tmp_path: Path) -> None:
    run_distributed(2, "cpu", write_rank, str(tmp_path))
    check_ranks(tmp_path)


@pytest.mark.parametrize(
    ("requested", "batch_size", "device", "cores", "want"),
    [
        (4, 16, "cpu", 8, 4), (0, 16, "cpu", 1, 1), (0, 16, "cpu", 3, 2), (0, 16, "cpu", 8, 8), (0, 15, "cpu", 4, 3),
        (0, 16, "cuda", 4, 4), (0, 6, "cuda", 4, 3), (2, 16, "cuda", 8, 2), (0, 16, "mps", 8, 1),
    ],
)  # fmt: skip
def test_the_number_of_processes(
    requested: int, batch_size: int, device: str, cores: int, want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "available_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cores)
    assert n_processes(requested, batch_size, device) == want


def test_processes_that_cannot_split_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="want a batch that 3 processes can split evenly, got 16; choose a multiple of 3"):
        n_processes(3, 16, "cpu")


def test_more_processes_than_gpus_are_refused_before_anything_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"want at most 4 processes on cuda, got 8; lower train.processes$"):
        n_processes(8, 16, "cuda")
    with pytest.raises(ValueError, match=r"want at most 1 processes on cuda:1, got 2; .*, or set train.device to cuda"):
        n_processes(2, 16, "cuda:1")
    assert n_processes(16, 32, "cuda", on_this_machine=False) == 16, "of several machines together"


@pytest.mark.parametrize(
    ("batch_size", "accumulation_steps", "world_size", "want"),
    [
        (16, 1, 1, 1),
        (16, 16, 1, 16),
        (16, 16, 2, 8),
        (16, 4, 8, 1),
        (1024, 32, 8, 4),
        (16, 4, 4, 1),
        (12, 4, 2, 2),
        (12, 3, 4, 1),
    ],
)
def test_more_processes_make_fewer_passes_of_as_many_samples(
    batch_size: int, accumulation_steps: int, world_size: int, want: int
) -> None:
    n = n_passes(batch_size, accumulation_steps, world_size)
    assert n == want
    assert batch_size // world_size // n <= batch_size // accumulation_steps


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_every_preset_trains_on_several_gpus(world_size: int) -> None:
    for name in preset_names():
        settings = with_preset({"preset": name})
        n = n_passes(settings["batch_size"], settings.get("accumulation_steps", 1), world_size)
        assert settings["batch_size"] % (n * world_size) == 0, name
