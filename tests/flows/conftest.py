import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """\
stages:
  first:
    cmd: python make.py first
    deps: [in.txt, make.py]
    params: [first]
    outs: [data]
  branch:
    matrix:
      name: [x, y]
      size: [1]
    cmd: python make.py branch ${item.name}
    deps:
      - data
    outs:
      - branch-${item.name}.txt
  network:
    cmd: python make.py network
    deps: [branch-x.txt, branch-y.txt]
    outs: [models/editor]
    meta: {register: editor, retries: 1, timeout_s: 50}
  scores:
    cmd: python make.py scores
    deps: [models/editor, in.txt]
    outs: [reports]
    meta: {gate: emuedit, report: true}
metrics:
  - reports/metrics.json
"""
MAKE = """\
import json, os, sys
from pathlib import Path

what, value = sys.argv[1], Path("in.txt").read_text().strip()
if what == "first":
    Path("data").mkdir(exist_ok=True)
    Path("data/x.txt").write_text(value)
if what == "branch":
    Path(f"branch-{sys.argv[2]}.txt").write_text(value)
if what == "network":
    folder = Path("models/editor")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "weights.safetensors").write_text(value)
    head = {"uid": "u" + value, "experiment": "network", "name": "one", "params": {}}
    lines = [head, {"step": 1, "ms": 1, "metrics": {"loss": 0.5}}, {"status": "FINISHED"}]
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
    Path("parent.txt").write_text(os.environ.get("EMUEDIT_PARENT_RUN", ""))
if what == "scores":
    Path("reports").mkdir(exist_ok=True)
    table = {"identity": {"overall": 0.1, "local": None}, "emuedit": {"overall": float(value), "local": float(value)}}
    Path("reports/metrics.json").write_text(json.dumps({"edit_success": table}))
"""
MODEL = """\
import mlflow, pandas

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: pandas.DataFrame, params=None) -> pandas.DataFrame:
        return pandas.DataFrame([{"image": "", "task": "local", "probability": 1.0}] * len(model_input))

mlflow.models.set_model(Model())
"""


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for key, value in {
        "HOME": str(home), "DVC_NO_ANALYTICS": "true", "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_HOME": str(home / "prefect"),
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    for key in ("EMUEDIT_PARENT_RUN", "PREFECT_API_URL"):
        monkeypatch.delenv(key, raising=False)


def run_command(*command: str | Path, cwd: Path) -> str:
    process = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture
def shell() -> Callable[..., str]:
    """Runs a command and returns its output; a failure fails the test."""
    return run_command


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    run_command("git", "init", "-q", ".", cwd=root)
    run_command(sys.executable, "-m", "dvc", "init", "-q", cwd=root)
    (root / ".dvc/config").write_text((ROOT / ".dvc/config").read_text())
    return root


@pytest.fixture
def project(repository: Path, tmp_path: Path) -> Iterator[Path]:
    """A tiny pipeline of the shape of ours; the working folder is its root."""
    root = tmp_path / "project"
    shutil.copytree(repository, root)
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "make.py").write_text(MAKE)
    (root / "params.yaml").write_text("first: {size: 3}\nscores: {settings: {steps: 7, guidance_scale: 3.0}}\n")
    (root / "in.txt").write_text("0.5\n")
    (root / ".gitignore").write_text("*.db\n/mlruns\n/parent.txt\n")
    before = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(before)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database after its migrations, which cost seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an MLflow database without runs, which MLFLOW_TRACKING_URI names."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path}/mlflow.db")
    return uri


@pytest.fixture
def weightless_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers a model that needs no weights in place of the editor."""
    from flows import release

    (tmp_path / "weightless_model.py").write_text(MODEL)
    monkeypatch.setattr(release, "MODEL_FILE", tmp_path / "weightless_model.py")


@pytest.fixture
def dvc_run(project: Path) -> Callable[..., str]:
    """Runs dvc in the project and returns its output."""
    return lambda *arguments: run_command(sys.executable, "-m", "dvc", *arguments, cwd=project)
