"""The status of a server's answer to a failure, through MLflow's scoring server, and requests whose client has gone."""

import asyncio
import base64
import importlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image

from emuedit.data.budget import Budget
from emuedit.data.image_io import ImageError
from emuedit.editing.edit_turn import TaskChoice, Turn
from emuedit.editor.changed_area import ChangedArea
from emuedit.editor.settings import EditSettings
from flows import pyfunc_model

LIMIT_S = 60


def encode() -> str:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


ROW = {"image": encode(), "instruction": "make it red"}


class ServedEditor:
    """Returns the picture after `edit`, which may raise. `lock`: as of `EditSampler`, edits run one at a time."""

    settings = EditSettings()
    sampler = SimpleNamespace(resolution_px=64, grid_px=4)

    def __init__(self, edit: Callable[[Any], object]) -> None:
        self.edit, self.lock, self.n_edits = edit, threading.Lock(), 0

    def edit_turns(self, pixels: Any, instructions: list[str], tasks: Any, settings: Any, report: Any) -> list[Turn]:
        with self.lock:
            self.edit(report)
            self.n_edits += 1
        return [Turn(instructions[0], TaskChoice("local", None), pixels, pixels, ChangedArea(0.0, None))]


class ServedModel:
    """Stands for MLflow's wrapper of the model, without a signature."""

    metadata = SimpleNamespace(_is_signature_from_type_hint=lambda: False, get_input_schema=lambda: None)

    def __init__(self, edit: Callable[[Any], object]) -> None:
        self.model: Any = pyfunc_model.EditorModel()
        self.model.editor = ServedEditor(edit)  # type: ignore[assignment]  # mypy narrows Any to the class

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        answer: pd.DataFrame = type(self.model).predict(self.model, data, params)
        return answer


def body(n_rows: int = 1) -> bytes:
    return json.dumps({"dataframe_records": [ROW] * n_rows}).encode()


def fail_with(error: Exception) -> Callable[[Any], object]:
    def edit(report: Any) -> None:
        raise error

    return edit


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The environment of MLflow's server; gives the list of signals that the process sends to itself."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", str(LIMIT_S))
    signals: list[int] = []

    def record(process: int, number: int) -> None:
        assert process == os.getpid()
        signals.append(number)

    monkeypatch.setattr(os, "kill", record)
    return signals


AN_ERROR = pytest.mark.parametrize(
    ("error", "status", "words", "ends"),
    [
        (ImageError("want an image, got a text"), 400, "row 0: want an image, got a text", False),
        (torch.OutOfMemoryError("CUDA out of memory"), 503, "want memory for the edit, got OutOfMemoryError", False),
        (torch.AcceleratorError("CUDA error: out of memory"), 503, "want memory for the edit", False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 503, "want memory for the edit", False),
        (RuntimeError("shapes differ"), 500, "got RuntimeError: shapes differ", False),
        (ValueError("operands could not be broadcast"), 500, "got ValueError: operands", False),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), 500, "got AcceleratorError", True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), 500, "got RuntimeError: CUDA error", True),
    ],
    ids=lambda value: str(value) if isinstance(value, Exception) else "",
)


@AN_ERROR
def test_the_status_tells_the_fault_of_the_client_from_that_of_the_server(
    error: Exception, status: int, words: str, ends: bool, server: list[int]
) -> None:
    with pytest.raises(MlflowException) as caught:
        scoring_server.invocations(body(), "application/json", ServedModel(fail_with(error)), None)
    assert caught.value.get_http_status_code() == status
    assert words in caught.value.message
    assert server == ([signal.SIGTERM] if ends else []), "after such an error no CUDA call of the process succeeds"


def test_in_python_no_process_is_ended_and_no_time_is_limited(server: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT")
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0")
    assert len(ServedModel(lambda report: report(1)).predict(pd.DataFrame([ROW]))) == 1
    with pytest.raises(MlflowException, match="illegal memory access"):
        ServedModel(fail_with(RuntimeError("CUDA error: an illegal memory access"))).predict(pd.DataFrame([ROW]))
    assert server == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds that the model reads."""
    now = [100.0]
    monkeypatch.setattr(pyfunc_model, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize("step_s", [25, LIMIT_S])
def test_a_request_ends_between_rows_and_steps_at_its_time_limit(step_s: float, server: list[int], clock: list[float]) -> None:
    def edit(report: Any) -> None:
        clock[0] += step_s
        report(1)

    model = ServedModel(edit)
    with pytest.raises(MlflowException, match=r"want an answer within 60 s, .*; try again later") as caught:
        model.predict(pd.DataFrame([ROW] * 5))
    assert caught.value.get_http_status_code() == 503
    assert model.model.editor.n_edits == int(LIMIT_S / step_s) - (step_s == LIMIT_S)


def test_the_time_limit_counts_from_the_arrival_of_the_request(server: list[int], clock: list[float]) -> None:
    """Also while it waits for a thread of MLflow's server."""
    model, arrival_s = ServedModel(lambda report: None), ContextVar[float]("emuedit_arrival_s")
    context = copy_context()
    context.run(arrival_s.set, clock[0] - LIMIT_S)
    with pytest.raises(MlflowException, match="want an answer within 60 s"):
        context.run(model.predict, pd.DataFrame([ROW]))
    assert model.model.editor.n_edits == 0
    context.run(arrival_s.set, clock[0])
    assert len(context.run(model.predict, pd.DataFrame([ROW]))) == 1


def test_the_server_notes_the_arrival_for_the_thread_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is imported in place of MLflow's, which loads a model on import."""
    limits_s: list[float] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        limits_s.append((await asyncio.to_thread(pyfunc_model._RequestLimit.current)).deadline_s)

    mlflow_app = ModuleType("mlflow.pyfunc.scoring_server.app")
    mlflow_app.app = answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, mlflow_app.__name__, mlflow_app)
    monkeypatch.delitem(sys.modules, "flows.serving_app", raising=False)
    serving_app = importlib.import_module("flows.serving_app")
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "60")
    monkeypatch.setattr(serving_app, "time", SimpleNamespace(monotonic=lambda: 5.0))
    asyncio.run(serving_app.app({}, None, None))
    assert limits_s == [65.0]


def test_the_edit_of_a_client_that_has_gone_ends_at_its_present_step(server: list[int]) -> None:
    """It went on for the whole time limit, and a few impatient clients blocked the server."""
    client_gone, variable, steps = threading.Event(), ContextVar[threading.Event]("emuedit_client_gone"), list[int]()

    def edit(report: Any) -> None:
        for step in range(5):
            steps.append(step)
            if step == 2:
                client_gone.set()
            report(step)

    context = copy_context()
    context.run(variable.set, client_gone)
    with pytest.raises(MlflowException, match="want a client that waits"):
        context.run(ServedModel(edit).predict, pd.DataFrame([ROW] * 3))
    assert steps == [0, 1, 2]


@pytest.mark.parametrize("task", [3, ["local"], True, b"local"])
def test_a_task_that_is_no_text_is_an_error(task: object) -> None:
    """Another task was predicted and used."""
    with pytest.raises(ValueError, match="row 0: want a task as text, or null to have it predicted"):
        ServedModel(lambda report: None).predict(pd.DataFrame([{**ROW, "task": task}]))


@pytest.mark.parametrize("task", [None, float("nan"), pd.NA, ""])
def test_a_missing_task_is_predicted(task: object) -> None:
    assert len(ServedModel(lambda report: None).predict(pd.DataFrame([{**ROW, "task": task}]))) == 1


@pytest.mark.slow
def test_edits_of_clients_that_have_gone_are_not_made(server: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Six requests wait for an edit that takes longer than their time limit. A later one does not wait for them."""
    is_over = threading.Event()

    def edit(report: Any) -> None:
        is_over.wait(30)
        report(1)

    model = ServedModel(edit)
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0.2")
    with ThreadPoolExecutor(6) as pool:
        burst = [pool.submit(model.predict, pd.DataFrame([ROW])) for _ in range(6)]
        while sum(request.done() for request in burst) < 4:  # the other two have the places of an edit
            time.sleep(0.01)
        is_over.set()
    errors = [request.exception() for request in burst]
    assert [error.get_http_status_code() for error in errors if isinstance(error, MlflowException)] == [503] * 6
    assert model.model.editor.n_edits == 0
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", str(LIMIT_S))
    assert len(model.predict(pd.DataFrame([ROW]))) == 1


def test_places_are_given_in_the_order_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to those that look in between whether their client has gone."""
    monkeypatch.setattr(pyfunc_model, "_WAIT_S", 0.001)
    places, limit = Budget(1), pyfunc_model._RequestLimit(float("inf"), None)
    order, threads = list[int](), list[threading.Thread]()

    def edit(number: int) -> None:
        with places.reserve(1, limit.check, limit.wait_s):
            order.append(number)

    with places.reserve(1):
        for number in range(8):
            threads.append(threading.Thread(target=edit, args=(number,)))
            threads[-1].start()
            while len(places._queue) <= number:
                time.sleep(0.001)
        time.sleep(0.05)
    for thread in threads:
        thread.join(10)
    assert order == list(range(8))
