"""Waiting for a retry or a GPU slot ends when the flow stops its stages. A retry after out of memory has a smaller batch."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError

from emuedit.failures import FailureKind
from emuedit.stages import MEMORY_ENV
from flows import dvc_graph, gpu_slot, pipeline, run_stage
from flows.run_stage import BusyError, StageCall, StageError, StageStoppedError


def refuse_slot(status: int) -> Callable[..., Any]:
    """A replacement of Prefect's `concurrency` for a server that answers with this HTTP status."""

    def concurrency(names: str, occupy: int, lease_duration: float, max_retries: int) -> Any:
        assert max_retries == 0, "want no waiting in Prefect, which nothing stops"
        error = ConcurrencySlotAcquisitionError(f"Unable to acquire concurrency slots on {names!r}")
        raise error from _response_error(status)

    return concurrency


def _response_error(status: int) -> Exception:
    error = RuntimeError(f"status {status}")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


def run_two(tmp_path: Path, run: Callable[..., float], monkeypatch: pytest.MonkeyPatch, **meta: object) -> float:
    """Run the stages `router` and `pairs`, the latter with this `meta:`, side by side until one fails. Returns the seconds."""
    from prefect import flow

    monkeypatch.setattr(run_stage, "run", run)
    graph = dvc_graph.Graph(tmp_path, (dvc_graph.Stage("router"), dvc_graph.Stage("pairs", meta=meta)), (), {})

    @flow
    def two_stages() -> None:
        pipeline.run_stages(graph, {"router": ("changed",), "pairs": ("changed",)}, "", False, 2)

    start = time.monotonic()
    with pytest.raises(StageError, match="router failed"):
        two_stages()
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_a_flow_that_failed_does_not_wait_for_a_gpu_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_refused = threading.Event()
    refuse = refuse_slot(423)

    def concurrency(*names: str, **options: Any) -> Any:
        has_refused.set()
        return refuse(*names, **options)

    def run(call: StageCall, stop: threading.Event) -> float:
        assert call.name == "router", "want no stage without a slot"
        assert has_refused.wait(60)
        raise StageError("router failed")

    monkeypatch.setattr(gpu_slot, "concurrency", concurrency)
    assert run_two(tmp_path, run, monkeypatch, gpu=True, retries=3) < 15


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_a_flow_that_failed_does_not_wait_for_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    tries: list[str] = []

    def run(call: StageCall, stop: threading.Event) -> float:
        tries.append(call.name)
        if call.name == "pairs":
            failed.set()
            raise StageError("no network", FailureKind.NETWORK)
        assert failed.wait(60)
        raise StageError("router failed")

    monkeypatch.setattr(pipeline, "RETRY_DELAYS_S", [300.0])
    assert run_two(tmp_path, run, monkeypatch, retries=3) < 15
    assert sorted(tries) == ["pairs", "router"]


def test_a_slot_is_asked_for_until_there_is_one_and_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def grant(*_: str, **options: Any) -> Any:
        return contextlib.nullcontext()

    answers = iter([refuse_slot(423), refuse_slot(423), grant])
    monkeypatch.setattr(gpu_slot, "POLL_S", 0.01)
    monkeypatch.setattr(gpu_slot, "concurrency", lambda *names, **options: next(answers)(*names, **options))
    with gpu_slot.gpu_slot(threading.Event()) as has_slot:
        assert has_slot
    assert next(answers, None) is None
    monkeypatch.setattr(gpu_slot, "concurrency", refuse_slot(500))
    with pytest.raises(ConcurrencySlotAcquisitionError), gpu_slot.gpu_slot(threading.Event()):
        pytest.fail("the stage ran without an answer of the server")


@pytest.mark.slow
@pytest.mark.usefixtures("prefect")
def test_a_slot_of_a_real_server_is_refused_while_another_stage_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import server_setup

    asyncio.run(server_setup.create_gpu_limit(1))
    monkeypatch.setattr(gpu_slot, "POLL_S", 0.1)
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    with gpu_slot.gpu_slot(threading.Event()) as is_first, gpu_slot.gpu_slot(stop) as is_second:
        assert (is_first, is_second) == (True, False)
    with gpu_slot.gpu_slot(threading.Event()) as is_free:
        assert is_free


@pytest.mark.parametrize(("variable", "expected"), [(None, [None, "1"]), ("2", ["2", "3"])])
def test_a_retry_after_out_of_memory_halves_the_batch_once_more(
    variable: str | None, expected: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MEMORY_ENV, raising=False)
    if variable:
        monkeypatch.setenv(MEMORY_ENV, variable)
    seen: list[str | None] = []

    def run(call: StageCall, stop: threading.Event) -> float:
        seen.append(call.environment.get(MEMORY_ENV))
        if len(seen) == 1:
            raise StageError("out of memory", FailureKind.MEMORY)
        return 1.0

    monkeypatch.setattr(run_stage, "run", run)
    monkeypatch.setattr(pipeline, "RETRY_DELAYS_S", [0.0])
    monkeypatch.setitem(pipeline._states, tmp_path, pipeline._FlowState())
    with pytest.raises(StageError, match="out of memory"):
        pipeline.reproduce.fn(StageCall("train", tmp_path), "train")
    assert pipeline.reproduce.fn(StageCall("train", tmp_path), "train") == 1.0
    assert seen == expected


NETWORK, MEMORY, OTHER = FailureKind.NETWORK, FailureKind.MEMORY, FailureKind.OTHER


@pytest.mark.parametrize(
    ("errors", "extra_retries", "expected"),
    [
        ([StageError("a", NETWORK) for _ in range(4)], 0, [True, True, True, False]),
        ([StageError("a", MEMORY), StageError("b", NETWORK), StageError("c", MEMORY)], 0, [True, True, False]),
        ([StageError("a", MEMORY), StageError("b", MEMORY)], 3, [True, False]),
        ([StageError("a", OTHER)], 0, [False]),
        ([StageError("a", OTHER), StageError("b", NETWORK), StageError("c", OTHER)], 1, [True, True, False]),
        ([StageStoppedError("train")], 3, [False]),
        ([BusyError("another DVC process")], 3, [False]),
    ],
)
def test_a_stage_is_retried_as_often_as_the_kind_of_failure_allows(
    errors: list[StageError], extra_retries: int, expected: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta: {retries: n}` counts for other failures than of the network and memory. A stopped stage is never retried."""
    answers = iter(errors)

    def run(call: StageCall, stop: threading.Event) -> float:
        raise next(answers)

    def is_retried() -> bool:
        with pytest.raises(StageError) as failure:
            pipeline.reproduce.fn(StageCall("train", tmp_path), "train", extra_retries=extra_retries)
        state: Any = SimpleNamespace(result=lambda raise_on_failure: failure.value)
        return pipeline.should_retry(pipeline.reproduce, None, state)  # type: ignore[arg-type]

    monkeypatch.setattr(run_stage, "run", run)
    monkeypatch.setattr(pipeline, "RETRY_DELAYS_S", [0.0])
    monkeypatch.setattr(pipeline, "_BUSY_TRIES", 0)
    monkeypatch.setitem(pipeline._states, tmp_path, pipeline._FlowState())
    assert [is_retried() for _ in errors] == expected


@pytest.mark.parametrize(("n_busy", "is_stopped", "n_calls"), [(2, False, 3), (4, False, 4), (4, True, 1)])
def test_a_stage_waits_for_another_dvc_process(
    n_busy: int,
    is_stopped: bool,
    n_calls: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three more tries; none after the flow stops its stages."""
    calls: list[StageCall] = []

    def run(call: StageCall, stop: threading.Event) -> float:
        calls.append(call)
        if len(calls) <= n_busy:
            raise BusyError("another DVC process")
        return 1.0

    state = pipeline._FlowState()
    if is_stopped:
        state.stop.set()
    monkeypatch.setattr(run_stage, "run", run)
    monkeypatch.setattr(pipeline, "_BUSY_TRIES", 3)
    monkeypatch.setattr(pipeline, "_BUSY_WAIT_S", 0.0)
    monkeypatch.setitem(pipeline._states, tmp_path, state)
    is_busy = n_busy >= n_calls
    with pytest.raises(BusyError) if is_busy else contextlib.nullcontext():
        assert pipeline.reproduce.fn(StageCall("train", tmp_path), "train") == 1.0
    assert len(calls) == n_calls
    lines = ["== train"] + ["== train: another DVC process; retrying in 0 s"] * (n_calls - 1)
    assert capsys.readouterr().out.splitlines() == lines + ([] if is_busy else ["== train: 1.0 s"])
