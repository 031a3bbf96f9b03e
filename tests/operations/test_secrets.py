"""Credentials in the environment are for the services alone: nothing that a retrain writes, logs or prints has them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emuedit.data.publish import STATS_FILE, logs_folder, write_summary
from emuedit.stages import instructions
from emuedit.tracking import Tracker
from emuedit.tracking.stats import PARENT_RUN_ENV
from flows import dvc_graph, release
from flows.retrain_options import RetrainOptions
from tests.flows.conftest import home, isolated_environment, project, repository, store, weightless_model
from tests.stages.scripted_llm import ANSWER, make_params, publish_captions
from tests.stages.workspace import toy_world

__all__ = ["home", "isolated_environment", "project", "repository", "store", "weightless_model"]
SECRETS = {
    "AWS_ACCESS_KEY_ID": "5ECRET-ACCESS-KEY",
    "AWS_SECRET_ACCESS_KEY": "5ecret/of+the-store",
    "AWS_SESSION_TOKEN": "5ecret-session-token",
    "S3_SECRET_KEY": "5ecret-of-the-test-store",
    "OPENAI_API_KEY": "sk-5ecret-of-the-llm",
    "HF_TOKEN": "hf_5ecretOfTheHub",
    "EMUEDIT_WEBHOOK_URL": "https://hooks.example.org/5ecret-hook",
    "EMUEDIT_SLACK_URL": "https://hooks.slack.example.org/services/T1/B2/5ecret-slack",
    "MLFLOW_TRACKING_PASSWORD": "5ecret-password-of-mlflow",
    "PREFECT_API_AUTH_STRING": "admin:5ecret-password-of-prefect",
}
USER = "ada-of-the-test"
"""MLFLOW_TRACKING_USERNAME, which MLflow writes to runs as their user."""


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, isolated_environment: None) -> None:
    for name, value in {**SECRETS, "MLFLOW_TRACKING_USERNAME": USER}.items():
        monkeypatch.setenv(name, value)


def texts(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    """Path and content of every file; of a Parquet file, which is compressed, its metadata and values."""
    for file in sorted(file for folder in folders for file in folder.rglob("*") if file.is_file()):
        if file.read_bytes()[:4] == b"PAR1":
            table = pq.read_table(file)
            yield file, f"{table.schema.metadata} {table.to_pylist()}".encode()
        else:
            yield file, file.read_bytes()


def secrets_in(content: bytes) -> list[str]:
    return [name for name, value in SECRETS.items() if value.encode() in content]


def write_instructions(root: Path, endpoint: Any) -> None:
    """Run the stage `instructions` with an LLM that wants a key, and does not answer the first time."""
    publish_captions(root, "one dog")
    world = toy_world() | {"llm": f"{endpoint.url}#a-model"}
    endpoint.answers = [(500, {"error": "try later"}), endpoint.chat_response(json.dumps(ANSWER))]
    endpoint.retry_after = "0"
    instructions.run(make_params(tasks=("remove",), world=world), root)
    assert {headers["Authorization"] for _, headers, _ in endpoint.requests} == {f"Bearer {SECRETS['OPENAI_API_KEY']}"}


def write_model(root: Path) -> dvc_graph.Graph:
    """What a training and its evaluation leave."""
    with Tracker(logs_folder(root, "network"), "network", {"lr": 1e-4}) as tracker:
        tracker.log(1, loss=0.5)
        assert tracker.unsent == 0
    for folder in ("models/editor", "reports"):
        (root / folder).mkdir(parents=True)
    (root / "models/editor/model_index.json").write_text("{}")
    (root / "models/editor/weights.safetensors").write_text("0.5")
    write_summary(root / "models/editor", "network", "k" * 16, {"dtype": "float32"}, {})
    table = {"identity": {"overall": 0.1, "local": None}, "emuedit": {"overall": 0.5, "local": 0.5}}
    (root / "reports/metrics.json").write_text(json.dumps({"edit_success": table}))
    (root / "dvc.lock").write_text("stages: {network: {cmd: python make.py, outs: [{path: models/editor, md5: a.dir}]}}\n")
    stages = (
        dvc_graph.Stage("network", (), (Path("models/editor"),), meta={"register": "editor"}),
        dvc_graph.Stage("scores", ("network",), (Path("reports"),), meta={"gate": "emuedit", "report": True}),
    )
    return dvc_graph.Graph(root, stages, (Path("reports/metrics.json"),), {})


@pytest.mark.slow
@pytest.mark.usefixtures("secrets", "weightless_model", "store")
def test_no_secret_is_in_anything_that_a_retrain_writes(
    project: Path, tmp_path: Path, home: Path, endpoint: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_instructions(tmp_path / "pipeline", endpoint)
    run_id = release.start(project)
    with monkeypatch.context() as patch:
        patch.setenv(PARENT_RUN_ENV, run_id)
        graph = write_model(project)
    result = release.finish(graph, run_id, {"network": 1.5}, RetrainOptions(reason="data: new captions"))
    assert result.version is not None
    assert result.version.number == 1
    output = capfd.readouterr()

    files = dict(texts(tmp_path, home)) | {Path("output"): (output.out + output.err).encode()}
    names = {path.name for path in files}
    assert names >= {"mlflow.db", "summary.json", STATS_FILE, "table.txt", "MLmodel", "metrics.json"}
    controls = {"mlflow.db": USER.encode(), "shard-00000.parquet": endpoint.url.encode()}
    for name, value in controls.items():
        assert any(value in content for path, content in files.items() if path.name == name), f"want {value!r} read in {name}"
    leaks = [f"{name} in {path}" for path, content in files.items() for name in secrets_in(content)]
    assert not leaks
