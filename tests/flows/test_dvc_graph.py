import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emuedit.data import dvc_state
from flows import dvc_graph
from flows.retrain_lock import LockError


@pytest.mark.slow
def test_the_graph_is_that_of_dvc(project: Path) -> None:
    graph = dvc_graph.read(project)
    assert {stage.name: stage.after for stage in graph.stages} == {
        "first": (),
        "branch@x-1": ("first",),
        "branch@y-1": ("first",),
        "network": ("branch@x-1", "branch@y-1"),
        "scores": ("network",),
    }
    assert [stage.name for stage in graph.stages] == ["first", "branch@x-1", "branch@y-1", "network", "scores"]
    network = graph.stages[3]
    assert (network.retries, network.timeout_s, network.parts()) == (1, 50.0, {"editor": Path("models/editor")})
    assert (graph.stages[0].retries, graph.stages[0].timeout_s, graph.stages[0].parts()) == (0, None, {})
    assert graph.metrics == (Path("reports/metrics.json"),)


@pytest.mark.slow
def test_stale_is_what_changed_and_what_follows(project: Path, dvc_run: Callable[..., None]) -> None:
    never_run = ("never run here",)
    assert dvc_graph.read(project).stale() == dict.fromkeys(["first", "branch@x-1", "branch@y-1", "network", "scores"], never_run)
    assert dvc_graph.read(project).lock_hash() == ""
    dvc_run("repro", "-q")
    graph = dvc_graph.read(project)
    assert graph.stale() == {}
    assert set(graph.stale(force=True).values()) == {("forced",)}
    assert set(graph.hashes()) == {
        "data", "branch-x.txt", "branch-y.txt", "summaries/x", "summaries/y", "models/editor", "reports"
    }  # fmt: skip
    (project / "branch-y.txt").unlink()
    assert dvc_graph.read(project).stale() == {
        "branch@y-1": ("out branch-y.txt: deleted",),
        "network": ("dep branch-y.txt: deleted", "follows branch@y-1"),
        "scores": ("follows network",),
    }
    dvc_run("checkout", "-q")
    (project / "params.yaml").write_text("first: {size: 4}\nscores: {steps: 7}\n")
    stale = dvc_graph.read(project).stale()
    assert stale["first"] == ("dep params.yaml: first modified",)
    assert len(stale) == 5


def test_content_follows_outs_and_nothing_else(project: Path) -> None:
    (project / "reports").mkdir()
    (project / "reports/metrics.json").write_text("{}")
    lock = "stages:\n  network:\n    cmd: CMD\n    outs:\n    - path: models/editor\n      md5: HASH.dir\n"
    paths = [Path("models/editor"), Path("reports/metrics.json")]

    def content(cmd: str, md5: str) -> str:
        (project / "dvc.lock").write_text(lock.replace("CMD", cmd).replace("HASH", md5))
        return dvc_graph.Graph(project, (), (), {}).content_of(paths)

    first = content("make", "aa")
    assert content("make again", "aa") == first
    assert content("make", "bb") != first
    (project / "reports/metrics.json").write_text("{ }")
    assert content("make", "aa") != first
    assert dvc_graph.Graph(project, (), (), {}).hashes() == {"models/editor": "aa.dir"}


def test_a_pipeline_that_cannot_be_read_is_an_error(project: Path, tmp_path: Path) -> None:
    (project / "dvc.yaml").write_text("stages:\n  one:\n    cmd: [}\n")
    with pytest.raises(dvc_graph.GraphError, match=r"dvc.yaml"):
        dvc_graph.read(project)
    (project / "dvc.yaml").unlink()
    with pytest.raises(dvc_graph.GraphError, match=r"want stages in .*dvc.yaml, got none"):
        dvc_graph.read(project)
    with pytest.raises(dvc_graph.GraphError, match=r"not inside of a DVC repository.* or `dvc init`"):
        dvc_graph.read(tmp_path)


@pytest.mark.parametrize("place", ["site", "tmp"])
def test_folders_that_dvc_cannot_write_are_named(place: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "site":
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", folder := "/proc/nothing")
    else:
        shutil.rmtree(project / ".dvc/tmp", ignore_errors=True)
        (project / ".dvc/tmp").write_text("")
        folder = str(project / ".dvc/tmp")
    with pytest.raises(dvc_graph.GraphError, match=rf"DVC cannot use {folder}: .*fix the permissions, or set DVC_SITE_CACHE_DIR"):
        dvc_graph.read(project)


@pytest.mark.slow
def test_the_state_of_dvc_is_private_here_and_in_the_processes_of_the_stages(
    project: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR")
    monkeypatch.setattr(dvc_state, "PLACE", home)
    dvc_graph.read(project)
    folder = home / f"emuedit-dvc-{os.getuid()}"
    assert os.environ["DVC_SITE_CACHE_DIR"] == str(folder)
    assert list((folder / "repo").iterdir())


@pytest.mark.timeout(30)
def test_dvc_is_not_waited_for_where_files_cannot_be_locked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LockError, match=r"want a folder whose files can be locked .*/\.dvc/tmp \(No locks available\)"):
        dvc_graph.read(project)


MARKS = "<<<<<<< HEAD\n  one: {cmd: a}\n=======\n  one: {cmd: b}\n>>>>>>> other\n"


@pytest.mark.parametrize(
    ("file", "content", "advice"),
    [
        ("dvc.lock", f'schema: "2.0"\nstages:\n{MARKS}', "dvc.lock contains merge conflict markers; delete it"),
        ("dvc.yaml", f"stages:\n{MARKS}", "dvc.yaml contains merge conflict markers; resolve"),
        (".dvc/tmp/rwlock", "half{", "delete .dvc/tmp/rwlock, left by a killed command"),
        ("dvc.lock", 'schema: "2.0"\nstages: [1]\n', "it is damaged; restore it with `git checkout -- dvc.lock`"),
        ("dvc.lock", "", "it is damaged; restore it with `git checkout -- dvc.lock`"),
        ("dvc.lock", 'schema: "3.0"\nstages: {}\n', "it is damaged; restore it with `git checkout -- dvc.lock`"),
        (".dvc/config.local", "[core\n", "run `dvc status` for details"),
        (".dvcignore", "data\n", "is ignored by .dvcignore:1:data"),
    ],
)
def test_an_error_of_dvc_says_what_to_do(file: str, content: str, advice: str, project: Path) -> None:
    (project / file).parent.mkdir(exist_ok=True)
    (project / file).write_text(content)
    with pytest.raises(dvc_graph.GraphError, match="DVC cannot read the pipeline in") as caught:
        dvc_graph.read(project)
    assert advice in str(caught.value)


def test_a_part_needs_one_folder() -> None:
    stage = dvc_graph.Stage("one", outs=(Path("a"), Path("b")), meta={"register": "editor"})
    with pytest.raises(dvc_graph.GraphError, match="want one out"):
        stage.parts()
    assert dvc_graph.Stage("one", meta={"register": {"editor": "a"}}).parts() == {"editor": Path("a")}
