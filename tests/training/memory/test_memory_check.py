"""What is refused because it does not fit, and what waits for other processes."""

import os
import re
import subprocess
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from emuedit.failures import FailureKind, kind_of
from emuedit.training import resources
from emuedit.training.distributed import TrainingProcesses
from emuedit.training.memory import memory_check
from emuedit.training.memory.memory_check import DeviceBusyError, MemoryFitError, check_fits
from emuedit.training.memory.memory_estimator import MemoryEstimator
from emuedit.training.memory.memory_plan import MemoryEstimate, MemoryPlan
from emuedit.training.train_settings import TrainSettings
from tests.editor.tiny_pipelines import build_base_model, build_editor_unet

PLAN = MemoryPlan(latent=(4, 8, 8), n_tokens=16, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def estimator() -> MemoryEstimator:
    return MemoryEstimator(build_editor_unet(build_base_model("sd15")))


@pytest.mark.slow
def test_what_cannot_fit_is_refused_and_nothing_else(estimator: MemoryEstimator) -> None:
    plan, device = replace(PLAN, micro_batch=4), torch.device("cpu")
    estimate = estimator.estimate(plan)
    check_fits(estimate, device, available=estimate.certain)
    assert "may run out" in check_fits(estimate, device, available=estimate.certain)
    assert check_fits(estimate, device, available=2 * estimate.total) == ""
    too_small = estimate.certain - 1
    with pytest.raises(MemoryFitError, match="want a training that fits") as refusal:
        check_fits(estimate, device, lambda: estimator.savings(plan), available=too_small - 1, capacity=too_small)
    assert kind_of(refusal.value) is FailureKind.OTHER, "a retry would fail in the same way"
    for option in ("gradient_checkpointing: true saves", "accumulation_steps: 4", "lora: {rank: 16} saves"):
        assert option in str(refusal.value)


class Editor(SimpleNamespace):
    """The parts of a `TrainableEditor` that an estimate needs."""


@pytest.mark.slow
@pytest.mark.parametrize("trains_text", [False, True])
def test_a_training_counts_all_its_models(trains_text: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    base_model = build_base_model("sdxl")
    encoders: list[Any] = base_model.text_encoders
    net = build_editor_unet(base_model)
    editor: Any = Editor(net=net, text=nn.ModuleList(encoders if trains_text else []), parts=base_model)
    estimates: list[MemoryEstimate] = []
    monkeypatch.setattr(resources, "check_fits", lambda estimate, device, savings: (estimates.append(estimate), "")[1])
    settings = TrainSettings(steps=1, batch_size=4, lr=1e-3, dtype="float32", accumulation_steps=2)
    (line,) = resources.check_memory(editor, (64, 48), settings, TrainingProcesses("cpu", 2), previews=True)
    (estimate,) = estimates
    assert line == f"memory {estimate}"
    parameters = [tensor for module in (net, base_model.vae, *encoders) for tensor in (*module.parameters(), *module.buffers())]
    assert estimate.weights == sum(tensor.nbytes for tensor in parameters)
    plan = estimate.plan
    assert (plan.micro_batch, plan.passes, plan.world_size, plan.fsdp, plan.previews) == (2, 1, 2, False, True)
    assert plan.latent == (base_model.channels, 64 // base_model.factor, 48 // base_model.factor)


@pytest.mark.slow
def test_a_training_that_would_fit_into_the_empty_device_is_repeated_later(
    estimator: MemoryEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like one that ran out of memory, and the error names the users of the memory."""
    estimate = estimator.estimate(PLAN)
    monkeypatch.setattr(memory_check, "device_users", lambda device: ["python (7, 1.00 GiB)", "java (8, 0.50 GiB)"])
    users = r"python \(7, 1\.00 GiB\), java \(8, 0\.50 GiB\)"
    message = rf"want .* GiB free memory on cpu, got 0\.00 GiB of .* GiB; its users: {users}; wait until they end, or use another"
    with pytest.raises(DeviceBusyError, match=message) as error:
        check_fits(estimate, torch.device("cpu"), available=0, capacity=estimate.certain)
    assert kind_of(error.value) is FailureKind.MEMORY


def test_the_users_of_a_cpu_are_its_largest_processes() -> None:
    users = memory_check.device_users(torch.device("cpu"))
    assert 1 <= len(users) <= 3
    assert all(re.fullmatch(r".* \(\d+, \d+\.\d\d GiB\)", user) for user in users)


def test_the_users_of_a_gpu_are_those_that_its_driver_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(stdout=f"/usr/bin/python3, {os.getpid()}, 31234 MiB\n[Not Found], 7, 12 MiB\n")

    monkeypatch.setattr(memory_check.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    users = memory_check.device_users(torch.device("cuda:1"))
    assert users == [f"python3 ({os.getpid()}, 31234 MiB)", "[Not Found] (7, 12 MiB)"]
    assert commands[0][:2] == ["/bin/nvidia-smi", "--id=GPU-1-2"]
    monkeypatch.setattr(memory_check.shutil, "which", lambda name: None)
    assert memory_check.device_users(torch.device("cuda:1")) == []


def test_processes_on_a_cpu_share_its_memory(estimator: MemoryEstimator) -> None:
    estimate = estimator.estimate(replace(PLAN, world_size=2))
    check_fits(estimate, torch.device("cpu"), available=2 * estimate.certain)
    with pytest.raises(MemoryFitError):
        check_fits(estimate, torch.device("cpu"), available=0, capacity=2 * estimate.certain - 1)


def test_a_device_whose_memory_cannot_be_read_is_not_checked(estimator: MemoryEstimator) -> None:
    assert "cannot be read" in check_fits(estimator.estimate(PLAN), torch.device("meta"))


def test_available_memory_respects_the_limit_of_a_container(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "_PROC", tmp_path)
    monkeypatch.setattr("emuedit.processes.CGROUP", tmp_path)
    assert memory_check.available_bytes(torch.device("cpu")) is None
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tpython\nVmRSS:\t    100 kB\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert memory_check.available_bytes(torch.device("cpu")) == 4100 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1500000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 500000\n")
    assert memory_check.available_bytes(torch.device("cpu")) == 2_000_000 + 100 * 1024
