"""Doors of places: workspaces that were moved or copied, folders that cannot be written, a machine with odd settings."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emuedit import params_check
from emuedit.tracking import model_cache, moved_store, run_outbox, runs
from flows import dvc_graph
from tests.repository import ROOT

KEEP_OVER_EXEC = """
import os, sys
from pathlib import Path
from emuedit.tracking import model_cache
model_cache.keep(Path(sys.argv[1]))
print("kept", flush=True)
os.execv(sys.executable, [sys.executable, "-S", "-c", "input()"])
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "EMUEDIT_PARENT_RUN"):
        monkeypatch.delenv(key, raising=False)
    for key, value in {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "ERROR", "DVC_NO_ANALYTICS": "true"}.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A workspace with a run that has an artifact, in its own `mlflow.db`."""
    root = tmp_path_factory.mktemp("original") / "a workspace"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        run_id = runs.start_run("retrain", "here")
        runs.log_text(run_id, "notes/a.txt", "as it was")
    (root / "run_id.txt").write_text(run_id)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


IN_MOVED = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from emuedit import cli
from emuedit.tracking import moved_store, runs
from flows import release
root, output, problem = Path.cwd(), io.StringIO(), ""
try:
    moved_store.check(root)
except moved_store.ServiceError as error:
    problem = str(error)
with redirect_stdout(output), redirect_stderr(output):
    without_run = release.start(root)
    statuses = [cli.main(["sync"]), cli.main(["sync", "--moved"])]
    run_id = Path("run_id.txt").read_text()
    before = runs.read_text(run_id, "notes/a.txt")
    runs.log_text(run_id, "notes/b.txt", "new")
    with_run = release.start(root)
print(json.dumps([problem, without_run, statuses, before, bool(with_run), output.getvalue()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("action", ["copied", "moved"])
def test_a_workspace_that_was_copied_or_moved_is_repaired_by_one_command(action: str, original: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "the second"
    shutil.copytree(original, first)
    assert moved_store.adopt(first) > 0
    assert moved_store.adopt(first) == 0
    (shutil.copytree if action == "copied" else shutil.move)(first, second)
    before = contents(first)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", IN_MOVED], cwd=second, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    problem, without_run, statuses, text, has_run, output = json.loads(process.stdout.splitlines()[-1])
    assert problem.startswith(f"mlflow.db still points to {first}, where artifacts would be written; run `emuedit sync --moved`")
    assert (without_run, statuses, text, has_run) == ("", [1, 0], "as it was", True)
    assert "The retrain continues" in output
    assert "paths in mlflow.db now point to" in output
    assert contents(first) == before, "the original is left as it was"
    assert [path.name for path in second.rglob("b.txt")] == ["b.txt"]
    assert (second / "mlflow.db.before-move").is_file()


@pytest.mark.slow
def test_a_server_and_a_new_database_are_left_alone(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved_store.check(original)
    moved_store.check(tmp_path)
    (tmp_path / "mlflow.db").write_text("no database")
    moved_store.check(tmp_path)
    assert (tmp_path / "mlflow.db").read_text() == "no database"
    shutil.copy(original / "mlflow.db", tmp_path)
    with pytest.raises(moved_store.ServiceError, match="run `emuedit sync --moved`"):
        moved_store.check(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    moved_store.check(tmp_path)


def download_to(folder: Path) -> Path:
    (folder / "artifacts").mkdir()
    (folder / "artifacts/x").write_text("x")
    return folder / "artifacts"


# name of the case -> what is done to the cache's folder, a fresh one
CACHES: dict[str, Callable[[Path], None]] = {
    "a file in its place": lambda folder: folder.write_text("a file"),
    "a home in /proc": lambda folder: folder.symlink_to("/proc/1"),
    "a link that leads nowhere": lambda folder: folder.symlink_to("/proc/nowhere"),
    "a device": lambda folder: folder.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("case", CACHES)
def test_a_cache_that_cannot_be_written_is_not_needed(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    CACHES[case](tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert (model_cache.get("m-1", download_to) / "x").read_text() == "x"
    assert "the model is not cached" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, where this user may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may mount nothing")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_cache_disk_is_not_needed(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))

    def download(folder: Path) -> Path:
        (folder / "weights").write_bytes(b"x" * 2**21)
        return folder

    assert (model_cache.get("m-1", download) / "weights").stat().st_size == 2**21
    assert "No space left on device" in capsys.readouterr().err
    assert list((small_disk / "emuedit/registered-models").iterdir()) == []


def test_the_cache_is_bounded_and_keeps_what_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = tmp_path / "emuedit/registered-models"
    long_ago = time.time() - 10 * 24 * 3600
    for number in range(12):
        path = model_cache.get(f"m-{number}", download_to)
        os.utime(path, (long_ago + number, long_ago + number))
    (models / ".part-killed").mkdir()
    os.utime(models / ".part-killed", (long_ago, long_ago))
    model_cache.get("m-0", download_to)  # in use again
    model_cache.get("new", download_to)
    left = sorted(path.name for path in models.iterdir())
    assert len(left) == model_cache.MAX_MODELS
    assert {"new", "m-0", "m-11"} <= set(left)
    assert ".part-killed" not in left


def test_a_half_deleted_model_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process was killed while it deleted the model, of which some files were left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    oldest, *_ = [model_cache.get(f"m-{number}", download_to) for number in range(model_cache.MAX_MODELS)]
    os.utime(oldest, (0, 0))

    delete = shutil.rmtree

    def delete_half(folder: Path, **options: Any) -> None:
        if not (files := list(Path(folder).rglob("x"))):
            return delete(folder, **options)
        files[0].unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(model_cache.shutil, "rmtree", delete_half)
        with pytest.raises(KeyboardInterrupt):
            model_cache.get("new", download_to)
    assert (model_cache.get(oldest.name, download_to) / "x").is_file()


@pytest.mark.slow
def test_a_model_that_a_server_keeps_is_not_deleted_until_it_exits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept over `execve`, with which a program becomes the server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models = [model_cache.get(f"m-{number}", download_to) for number in range(model_cache.MAX_MODELS)]
    command = [sys.executable, "-c", KEEP_OVER_EXEC, models[0]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"kept\n"
        for number, path in enumerate(models):
            os.utime(path, (number, number))
        model_cache.get("new", download_to)
        assert models[0].exists()
        server.stdin.close()
    model_cache.get("newer", download_to)
    assert not models[0].exists()
    assert models[2].exists()


def test_two_that_download_at_once_share_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def slow_download(folder: Path) -> Path:
        model_cache.get("m", download_to)  # another process, which is faster
        return download_to(folder)

    assert model_cache.get("m", slow_download) == tmp_path / "emuedit/registered-models/m"


def test_results_wait_in_a_folder_with_a_space(tmp_path: Path) -> None:
    root = tmp_path / "my work"
    root.mkdir()
    (root / "a b.txt").write_text("x")
    entry = run_outbox.keep(root, "here", "", run_outbox.RunResults({}, {}, {}, {"reports/a b.txt": root / "a b.txt"}))
    assert run_outbox.entries(root) == [entry]


# name of the case -> (folder below the workspace, environment, what the dry run must say)
PLACES: dict[str, tuple[str, dict[str, str], str]] = {
    "LANG=C, no TERM, no COLUMNS, PYTHONWARNINGS of another project, a stale PREFECT_API_URL": (
        ".",
        {
            "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "TERM": "dumb", "COLUMNS": "x", "PYTHONWARNINGS": "default",
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
        },
        r"stages are out of date",
    ),
    "a home that is read-only": (".", {"HOME": "/proc/nobody"}, r"stages are out of date|is not writable|cannot be written"),
    "a subfolder": ("docs", {}, r"want a parameter file, got none at .*run from the root"),
    "no git": (
        ".",
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"},
        r"want a git repository in .*, got none; run `git init`, or in a copy without git `dvc config",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose params were checked, with a git repository and DVC's folder."""
    root = tmp_path_factory.mktemp("project") / "a copy"
    (root / "docs").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    for name in ("emuedit", "toyworld"):
        (root / name).symlink_to(ROOT / name)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    params_check.check(root)  # in this process, which has torch; the command finds that it was done
    return root


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", PLACES)
def test_a_dry_run_in_odd_places(case: str, project: Path, tmp_path: Path) -> None:
    root = tmp_path / "a copy"
    shutil.copytree(project, root, symlinks=True)
    if case == "no git":
        shutil.rmtree(root / ".git")
    folder, variables, words = PLACES[case]
    command = ["bash", "-c", 'ulimit -n 48; exec "$@"', "bash", sys.executable, "-m", "flows.retrain", "--dry-run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_SITE_CACHE_DIR": str(tmp_path / "site")} | variables
    process = subprocess.run(command, cwd=root / folder, capture_output=True, text=True, env=environment)
    output = process.stdout + process.stderr
    assert "Traceback" not in output
    assert re.search(words, output), output


def test_dvc_is_not_asked_where_there_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(dvc_graph.GraphError, match="DVC cannot read the pipeline"):
        dvc_graph.read(tmp_path)
