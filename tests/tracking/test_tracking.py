import json
import logging
import shutil
import socket
import sys
from pathlib import Path

import pytest

from emuedit.tracking import Tracker, read_stats, replay, stats, store_address
from tests.tracking.fake_client import FakeClient


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "emuedit.tracking.stats"]


def test_the_mirror_has_the_metrics_of_the_file(tmp_path: Path, server: FakeClient) -> None:
    with Tracker(tmp_path / "one", "train", {"lr": 1e-4}) as tracker:
        tracker.log(1, loss=0.5, grad=float("nan"))
        tracker.log(2, loss=0.25)
        assert tracker.unsent == 0
    (run,) = server.runs.values()
    assert run["params"] == {"lr": "0.0001"}
    assert run["name"] == "one"
    assert run["status"] == "FINISHED"
    assert run["metrics"].pop(("grad", 1)) != 0  # nan differs from everything
    assert run["metrics"] == {("loss", 1): 0.5, ("loss", 2): 0.25}
    head, *lines = read_stats(tmp_path / "one" / "stats.jsonl")
    assert head["experiment"] == "train"
    assert [line.get("metrics") for line in lines] == [{"loss": 0.5, "grad": "nan"}, {"loss": 0.25}, None]
    assert lines[-1] == {"status": "FINISHED"}


def test_without_a_server_and_a_flow_nothing_is_sent_until_a_replay(
    tmp_path: Path, server: FakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As under `dvc repro`, which must not create an `mlflow.db`."""
    monkeypatch.delenv(store_address.TRACKING_URI_ENV)
    monkeypatch.delenv(stats.PARENT_RUN_ENV, raising=False)
    with Tracker(tmp_path, "train") as tracker:
        tracker.log(1, loss=0.5)
        assert tracker.unsent == 1
    assert server.runs == {}
    assert warnings_of(caplog) == []
    assert replay(tmp_path / "stats.jsonl") == 0
    (run,) = server.runs.values()
    assert run["metrics"] == {("loss", 1): 0.5}


def test_a_failed_run_is_marked(tmp_path: Path, server: FakeClient) -> None:
    with pytest.raises(KeyError), Tracker(tmp_path, "train") as tracker:  # noqa: PT012
        tracker.log(1, loss=0.5)
        raise KeyError
    assert replay(tmp_path / "stats.jsonl") == 0
    assert [run["status"] for run in server.runs.values()] == ["FAILED"]


def test_lines_are_sent_when_the_server_is_reachable_again(
    tmp_path: Path, server: FakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(stats.time, "monotonic", lambda: next(clock))
    with Tracker(tmp_path, "train") as tracker:
        tracker.log(1, loss=1.0)
        server.is_down = True
        tracker.log(2, loss=2.0)
        tracker.log(3, loss=3.0)
        assert tracker.unsent == 2
        server.is_down = False
        tracker.log(4, loss=4.0)
        assert tracker.unsent == 0
    (run,) = server.runs.values()
    assert run["metrics"] == {("loss", step): float(step) for step in (1, 2, 3, 4)}
    assert [text.split(":")[0] for text in warnings_of(caplog)] == ["MLflow is not reachable"]


def test_failures_are_not_retried_at_every_step(tmp_path: Path, server: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    server.is_down = True
    attempts = []
    monkeypatch.setattr(server, "get_experiment_by_name", lambda name: attempts.append(name) or server._check_connection())
    tracker = Tracker(tmp_path, "train")
    for step in range(50):
        tracker.log(step, loss=0.0)
    assert len(attempts) == 1
    assert tracker.unsent == 50
    tracker.close()


def test_replay_sends_unsent_lines_and_may_be_repeated(tmp_path: Path, server: FakeClient) -> None:
    server.is_down = True
    with Tracker(tmp_path, "train", {f"p{i}": i for i in range(150)}) as tracker:
        for step in range(1500):
            tracker.log(step, loss=float(step))
    assert tracker.unsent == 1500
    assert replay(tmp_path / "stats.jsonl") == 1500
    server.is_down = False
    assert replay(tmp_path / "stats.jsonl") == replay(tmp_path / "stats.jsonl") == 0
    (run,) = server.runs.values()
    assert len(run["metrics"]) == 1500
    assert len(run["params"]) == 150


def test_a_restart_continues_the_same_run(tmp_path: Path, server: FakeClient, caplog: pytest.LogCaptureFixture) -> None:
    with Tracker(tmp_path, "train") as tracker:
        tracker.log(1, loss=1.0)
    with (tmp_path / "stats.jsonl").open("a") as stream:
        stream.write('{"step": 2, "met')  # as kill -9 leaves it
    with Tracker(tmp_path, "train") as tracker:
        tracker.log(2, loss=2.0)
    assert [line["step"] for line in read_stats(tmp_path / "stats.jsonl") if "step" in line] == [1, 2]
    assert len(server.runs) == 1
    assert "an incomplete line" in warnings_of(caplog)[0]


def test_the_run_of_a_flow_is_the_parent_run(tmp_path: Path, server: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stats.PARENT_RUN_ENV, "flow")
    with Tracker(tmp_path / "one", "train") as tracker:
        tracker.log(1, loss=1.0)
    (run,) = server.runs.values()
    assert (run["name"], run["experiment_id"], run["tags"]["mlflow.parentRunId"]) == ("train one", "experiment of flow", "flow")
    monkeypatch.delenv(stats.PARENT_RUN_ENV)
    with Tracker(tmp_path / "two", "train") as tracker:
        tracker.log(1, loss=1.0)
    monkeypatch.setenv(stats.PARENT_RUN_ENV, "next")  # a run that is continued under a flow
    with Tracker(tmp_path / "two", "train") as tracker:
        tracker.log(2, loss=1.0)
    _, other = server.runs.values()
    assert (other["name"], other["experiment_id"], other["tags"]["mlflow.parentRunId"]) == ("two", "train", "next")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "stats.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(ValueError, match=r"stats.jsonl, line 2: want a JSON object, got 'nonsense'"):
        read_stats(tmp_path / "stats.jsonl")


@pytest.mark.slow
def test_a_refused_connection_only_gives_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)  # of a command that ran in this process
    with Tracker(tmp_path, "train") as tracker:
        for step in range(3):
            tracker.log(step, loss=0.1)
    assert tracker.unsent == 3
    assert len(read_stats(tmp_path / "stats.jsonl")) == 5
    unreachable, unsent = warnings_of(caplog)
    assert unreachable.startswith("MLflow is not reachable")
    assert unsent.startswith("3 lines of")


def test_metrics_are_written_when_mlflow_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name == "mlflow" or name.startswith("mlflow.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setenv(store_address.TRACKING_URI_ENV, "http://server.example.org")
    with caplog.at_level(logging.WARNING), Tracker(tmp_path, "train") as tracker:
        tracker.log(1, loss=0.1)
        tracker.log(2, loss=0.1)
    assert len(read_stats(tmp_path / "stats.jsonl")) == 4
    assert sum("stats.jsonl only" in text for text in warnings_of(caplog)) == 1


@pytest.mark.slow
def test_sqlite_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    from mlflow.tracking import MlflowClient

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with Tracker(tmp_path / "run", "train", {"lr": 0.1}) as tracker:
        tracker.log(1, loss=0.5)
        tracker.log(2, loss=float("inf"))
    assert tracker.unsent == 0
    assert replay(tmp_path / "run" / "stats.jsonl") == 0
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("train").experiment_id])
    assert run.data.params == {"lr": "0.1"}
    assert run.info.status == "FINISHED"
    first, _ = client.get_metric_history(run.info.run_id, "loss")
    assert (first.step, first.value) == (1, 0.5)
    assert json.loads((tmp_path / "run" / "stats.jsonl").read_text().splitlines()[2])["metrics"] == {"loss": "inf"}
    with Tracker(tmp_path / "run", "train") as tracker:
        tracker.log(3, loss=0.2)
        assert client.get_run(run.info.run_id).info.status == "RUNNING"
    closed = client.get_run(run.info.run_id).info
    assert (closed.status, closed.end_time >= read_stats(tmp_path / "run" / "stats.jsonl")[-2]["ms"]) == ("FINISHED", True)
