"""Why a stage failed decides whether it is tried again; the stage says it by its exit status."""

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emuedit import stages
from emuedit.failures import FailureKind
from emuedit.synthesis.worker_pool import WorkerPoolError
from emuedit.training.distributed import DistributedError
from flows.failure_kinds import classify


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("want steps of at least 1"), 1),
        (RuntimeError("no"), 1),
        (ConnectionResetError(), stages.NETWORK_STATUS),
        (TimeoutError(), stages.NETWORK_STATUS),
        (caused(ValueError("the model was not found"), ConnectionRefusedError()), stages.NETWORK_STATUS),
        (MemoryError(), stages.OUT_OF_MEMORY_STATUS),
        (OutOfMemoryError("CUDA out of memory"), stages.OUT_OF_MEMORY_STATUS),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), stages.OUT_OF_MEMORY_STATUS),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), stages.OUT_OF_MEMORY_STATUS),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), stages.OUT_OF_MEMORY_STATUS),
        (DistributedError("a training process failed", FailureKind.MEMORY), stages.OUT_OF_MEMORY_STATUS),
        (caused(WorkerPoolError("in shard-1", FailureKind.NETWORK), EOFError()), stages.NETWORK_STATUS),
        (caused(WorkerPoolError("the worker died"), ConnectionResetError()), 1),
    ],
)
def test_the_exit_status_of_a_stage_tells_the_kind(error: Exception, status: int) -> None:
    assert stages.exit_status(error) == status


def test_errors_of_network_libraries_are_of_the_network() -> None:
    exceptions = importlib.import_module("botocore.exceptions")
    assert stages.exit_status(exceptions.EndpointConnectionError(endpoint_url="http://nowhere")) == stages.NETWORK_STATUS


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("ERROR: failed to run: python -m emuedit.stages.pairs, exited with 75", FailureKind.NETWORK),
        ("ERROR: failed to run: python -m emuedit.stages.train, exited with 71", FailureKind.MEMORY),
        ("ERROR: failed to run: python -m emuedit.stages.train, exited with -9", FailureKind.MEMORY),
        ("ERROR: failed to run: python -m emuedit.stages.train, exited with 1", FailureKind.OTHER),
        ("is busy", FailureKind.OTHER),
        ("", FailureKind.OTHER),
    ],
)
def test_the_kind_is_read_from_what_dvc_says(output: str, kind: FailureKind) -> None:
    assert classify(output) is kind


def test_a_stage_that_ran_out_of_memory_computes_half_as_much_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stages.MEMORY_ENV, raising=False)
    assert stages.batch_divisor() == 1
    monkeypatch.setenv(stages.MEMORY_ENV, "2")
    assert stages.batch_divisor() == 4


def test_wrong_params_end_a_real_stage_with_status_1(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("world: {}\ncaptions: {}\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(stages.__file__).parents[2])}
    command = [sys.executable, "-m", "emuedit.stages.captions"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
