"""GPUs that torch does not use, with a stand-in for nvidia-smi."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from emuedit.operations.health import doctor, gpu_checks
from emuedit.operations.health.health_finding import Finding

PROGRAM = """#!/bin/sh
[ -z "$1" ] && echo "| NVIDIA-SMI 535.10  Driver Version: 535.10  CUDA Version: $DRIVER_CUDA |" && exit 0
printf "$GPUS"
exit $STATUS
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU that torch cannot use, with a driver for CUDA 13.2, as torch."""
    (tmp_path / "nvidia-smi").write_text(PROGRAM)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"GPUS": "NVIDIA L4, 535.10\\n", "STATUS": "0", "DRIVER_CUDA": "13.2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    set_torch(monkeypatch, "2.15.0+cu132", "13.2")


def set_torch(monkeypatch: pytest.MonkeyPatch, version: str, cuda: str | None, is_available: bool = False) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(is_available))


def check() -> Finding:
    (finding,) = gpu_checks.check_gpu()
    return finding


def test_a_machine_without_gpu_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert check().status == "pass"
    assert gpu_checks.check_gpu in doctor.CHECKS


def test_a_gpu_that_torch_uses_passes(nvidia_smi: None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_torch(monkeypatch, "2.15.0+cu132", "13.2", is_available=True)
    finding = check()
    assert (finding.status, finding.detail) == ("pass", "1 listed (NVIDIA L4, 535.10), 1 usable by torch 2.15.0+cu132")


def test_a_torch_without_cuda_fails(nvidia_smi: None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_torch(monkeypatch, "2.15.0+cpu", None)
    finding = check()
    assert finding.status == "fail"
    assert "torch 2.15.0+cpu is built without CUDA" in finding.detail
    assert "uv sync --reinstall-package torch" in finding.fix


@pytest.mark.parametrize(("driver", "is_too_old"), [("12.8", True), ("13.0", False), ("14.1", False)])
def test_a_driver_that_is_too_old_fails_with_both_versions(
    driver: str, is_too_old: bool, nvidia_smi: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVER_CUDA", driver)
    finding = check()
    assert finding.status == "fail"
    assert (f"for CUDA {driver}, and torch 2.15.0+cu132 is built for CUDA 13.2" in finding.detail) is is_too_old
    assert ("install an NVIDIA driver for CUDA 13" in finding.fix) is is_too_old
    assert ("torch.cuda.init()" in finding.fix) is not is_too_old


def test_hidden_gpus_and_a_tool_without_gpus_are_warnings(nvidia_smi: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (check().status, check().fix) == ("warn", "unset CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("GPUS", "NVIDIA-SMI has failed: no driver\\n")
    monkeypatch.setenv("STATUS", "9")
    finding = check()
    assert (finding.status, finding.detail) == ("warn", "nvidia-smi lists none: NVIDIA-SMI has failed: no driver")
