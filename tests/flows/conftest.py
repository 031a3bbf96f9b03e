import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from emuedit.processes import die_with_parent
from flows import flow_process, process_guard
from tests.databases import DatabaseOf, copy_database
from tests.flows import warm_dvc
from tests.operations.conftest import dvc_in_process, run_dvc_here

__all__ = ["dvc_in_process"]

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
    deps: [data]
    outs: ["branch-${item.name}.txt", "summaries/${item.name}"]
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
    (folder := Path("summaries", sys.argv[2])).mkdir(parents=True, exist_ok=True)
    dtype = {"x": "float32", "y": "bfloat16"}[sys.argv[2]]
    (folder / "summary.json").write_text(json.dumps({"params": {"dtype": dtype}}))
if what == "network":
    folder = Path("models/editor")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "weights.safetensors").write_text(value)
    head = {"uid": "u" + value, "experiment": "network", "name": "one", "params": {}}
    lines = [head, {"step": 1, "ms": 1, "metrics": {"loss": 0.5}}, {"status": "FINISHED"}]
    logs = Path("logs/network")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "stats.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
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
COMPLETE_DATABASE = {"PREFECT_API_DATABASE_MIGRATE_ON_START": "false", "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
"""Environment of a Prefect server whose database has all tables and blocks, which it need not create."""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of the tests of this process."""
    return tmp_path_factory.mktemp("home")


def set_environment(patch: pytest.MonkeyPatch, home: Path) -> None:
    for key, value in {
        "HOME": str(home), "DVC_NO_ANALYTICS": "true", "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_HOME": str(home / "prefect"),
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
    }.items():  # fmt: skip
        patch.setenv(key, value)
    for key in ("EMUEDIT_PARENT_RUN", "PREFECT_API_URL"):
        patch.delenv(key, raising=False)


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    set_environment(monkeypatch, home)


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
    with chdir(root):
        assert run_dvc_here(["init", "-q"]) == 0
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


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an MLflow database without runs, which MLFLOW_TRACKING_URI names."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path}/mlflow.db")
    return uri


@contextmanager
def prefect_server(home: Path, database: Path) -> Iterator[str]:
    """The API of a Prefect server on this database, which it creates if there is none."""
    from flows import local_server

    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, home)
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{database}")
        for name, value in COMPLETE_DATABASE.items() if database.exists() else ():
            patch.setenv(name, value)
        server, url = local_server._start({})
    yield url
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def empty_prefect_database(database_of: DatabaseOf, home: Path) -> Path:
    """A Prefect database without runs."""

    def create(path: Path) -> None:
        with prefect_server(home, path):
            pass

    return database_of("prefect", create)


@pytest.fixture(scope="session")
def server_url(database_of: DatabaseOf, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """API of a Prefect server that runs already, so that a retrain starts none."""
    database = tmp_path_factory.mktemp("prefect") / "prefect.db"
    with ExitStack() as stack:
        urls: list[str] = []

        def start() -> None:
            urls.append(stack.enter_context(prefect_server(home, database)))

        def create(path: Path) -> None:
            start()  # once: a start takes ten seconds of a core, the migrations as much again
            copy_database(database, path)

        template = database_of("prefect", create)
        if not urls:
            shutil.copy(template, database)
            start()
        yield urls[0]


@pytest.fixture
def prefect(server_url: str) -> Iterator[None]:
    """Flows of this process use the server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server_url}):
        yield


@pytest.fixture(scope="session")
def dvc_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Socket of a process that runs DVC."""
    path = tmp_path_factory.mktemp("dvc") / "socket"
    with warm_dvc.listen(path) as listener:
        program = f"from tests.flows import warm_dvc; warm_dvc.serve({listener.fileno()})"
        server = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, pass_fds=[listener.fileno()], preexec_fn=die_with_parent
        )
    yield path
    server.kill()
    server.wait()


@pytest.fixture
def forked_dvc(monkeypatch: pytest.MonkeyPatch, dvc_socket: Path) -> None:
    """The stages of flows in this process run in forks that have imported DVC, without a guard and a time limit."""
    monkeypatch.setattr(process_guard, "command", partial(warm_dvc.client_command, dvc_socket))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, prefect: None, forked_dvc: None) -> None:
    """The flow runs in this process, where tests can replace the model; `test_stopping` has real processes."""
    from flows import pipeline  # not above: it imports Prefect, in four seconds

    monkeypatch.setattr(flow_process, "run_flow", lambda options: pipeline.retrain(**asdict(options)))


@pytest.fixture
def prepared_home(empty_prefect_database: Path, home: Path) -> None:
    """The home folder has the database that a local Prefect server would otherwise create at its first start."""
    database = home / "prefect" / "prefect.db"
    if not database.exists():
        database.parent.mkdir(exist_ok=True)
        shutil.copy(empty_prefect_database, database)


@pytest.fixture
def weightless_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers a model that needs no weights in place of the editor. The gate takes its `weights` for its share of successes.

    Its versions contain three files of our code, since MLflow copies and hashes them; `test_pyfunc_model` registers all.
    """
    from emuedit.promotion import gate, promote
    from emuedit.promotion.gate_settings import GateSettings
    from emuedit.tracking import registry
    from flows import release

    def measure(name: str, package: Path | None) -> gate.Measurement:
        share = 0.1 if package is None else float((package / "editor/weights.safetensors").read_text())
        return gate.Measurement(name, {"local": [number < round(share * 100) for number in range(100)]})

    def compare(
        package: Path, name: str, champion: registry.ModelVersion | None, root: Path, section: str = "evaluation"
    ) -> gate.Decision:
        folder = registry.download_version(champion.uri) if champion else None
        old = measure(champion.uri if champion else "the identity baseline", folder)
        return gate.decide(measure(name, package), old, GateSettings(), is_first=champion is None)

    monkeypatch.setattr(promote, "compare_with_champion", compare)
    for name in ("__init__.py", "config.py", "editing/api.py"):
        (copy := tmp_path / "code/emuedit" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "emuedit" / name, copy)
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path / "code/emuedit")
    (tmp_path / "weightless_model.py").write_text(MODEL)
    monkeypatch.setattr(release, "MODEL_FILE", tmp_path / "weightless_model.py")


@pytest.fixture
def dvc_run(project: Path) -> Callable[..., str]:
    """Runs dvc in the project, in this process, and returns its output: importing it takes more than a second of a core."""

    def run(*words: str, root: Path = project) -> str:
        output = io.StringIO()
        with chdir(root), redirect_stdout(output), redirect_stderr(output):
            status = run_dvc_here(words)
        assert status == 0, output.getvalue()
        return output.getvalue()

    return run
