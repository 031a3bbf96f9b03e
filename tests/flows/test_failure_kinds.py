"""Why a stage failed decides whether it is tried again; the stage says it by its exit status."""

import errno
import importlib
import os
import socket
import subprocess
import sys
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError

import httpx2
import pytest
from huggingface_hub import errors as hub_errors

from emuedit import stages
from emuedit.failures import FailureKind, explains_itself, kind_of
from emuedit.synthesis.worker_pool import WorkerPoolError
from emuedit.training.distributed import DistributedError
from flows.dvc_graph import GraphError
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
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), stages.OUT_OF_MEMORY_STATUS),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), stages.OUT_OF_MEMORY_STATUS),
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


def answer_of(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/owner/name"))


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment of the tests says."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (hub_errors.RepositoryNotFoundError("no such repository", response=answer_of(404)), FailureKind.OTHER),
        (hub_errors.GatedRepoError("ask for access", response=answer_of(403)), FailureKind.OTHER),
        (hub_errors.RemoteEntryNotFoundError("no such file", response=answer_of(404)), FailureKind.OTHER),
        (hub_errors.RevisionNotFoundError("no such revision", response=answer_of(404)), FailureKind.OTHER),
        (hub_errors.OfflineModeIsEnabled("offline"), FailureKind.OTHER),
        (hub_errors.HfHubHTTPError("forbidden", response=answer_of(403)), FailureKind.OTHER),
        (hub_errors.HfHubHTTPError("slow down", response=answer_of(429)), FailureKind.NETWORK),
        (hub_errors.HfHubHTTPError("bad gateway", response=answer_of(502)), FailureKind.NETWORK),
        (hub_errors.LocalEntryNotFoundError("not in the cache"), FailureKind.NETWORK),
        (httpx2.ConnectError("no route"), FailureKind.NETWORK),
    ],
)
@pytest.mark.parametrize("is_behind_our_message", [False, True])
def test_an_error_of_the_hub_is_of_the_network_unless_it_comes_again(
    error: Exception, kind: FailureKind, is_behind_our_message: bool
) -> None:
    in_the_cache_neither = caused(hub_errors.LocalEntryNotFoundError("not in the cache"), error)
    output = caused(FileNotFoundError("want a model, got none"), in_the_cache_neither) if is_behind_our_message else error
    assert kind_of(output) is kind


def test_what_is_not_on_this_machine_is_not_waited_for_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    error = caused(FileNotFoundError("want a model"), hub_errors.LocalEntryNotFoundError("not in the cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert kind_of(error) is FailureKind.OTHER
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert kind_of(error) is FailureKind.NETWORK


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, FailureKind.OTHER), (401, FailureKind.OTHER), (408, FailureKind.NETWORK), (429, FailureKind.NETWORK)]
    + [(status, FailureKind.NETWORK) for status in (500, 503)],
)
def test_a_status_of_a_service_tells_whether_to_try_again(status: int, kind: FailureKind) -> None:
    botocore_errors = importlib.import_module("botocore.exceptions")
    answers = [
        HTTPError("http://nowhere", status, "no", Message(), None),
        botocore_errors.ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "HeadObject"),
    ]
    assert [kind_of(answer) for answer in answers] == [kind, kind]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), FailureKind.NETWORK),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), FailureKind.OTHER),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), FailureKind.NETWORK),
        (OSError(errno.ENOSPC, "No space left on device"), FailureKind.OTHER),
    ],
)
def test_an_operating_system_error_is_of_the_network_by_its_number(error: OSError, kind: FailureKind) -> None:
    assert kind_of(error) is kind


@pytest.mark.parametrize(
    ("error", "is_explained"),
    [(DistributedError("no"), True), (GraphError("no"), True), (ValueError("no"), False), (httpx2.ConnectError("no"), False)],
)
def test_errors_of_this_project_explain_themselves(error: Exception, is_explained: bool) -> None:
    assert explains_itself(error) is is_explained


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


@pytest.mark.slow
def test_wrong_params_end_a_real_stage_with_status_1(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("world: {}\ncaptions: {}\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(stages.__file__).parents[2])}
    command = [sys.executable, "-m", "emuedit.stages.captions"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
