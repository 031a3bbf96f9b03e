"""What a retrain pushes and commits, without touching the working tree."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emuedit.git import GitError
from flows import dvc_graph, publication
from flows.publication import PublicationError, commit_results, metric_changes, push_data
from flows.result_origin import read_start
from flows.run_reason import ReasonError, complete_reason

Shell = Callable[..., str]
FILES = {path: path for path in (Path("dvc.lock"), Path("reports/metrics.json"))}


@pytest.fixture
def committed(project: Path, shell: Shell) -> Path:
    (project / "reports").mkdir()
    write_results(project, 0.4)
    shell("git", "add", "make.py", "dvc.yaml", "params.yaml", "dvc.lock", "reports/metrics.json", cwd=project)
    shell("git", "commit", "-qm", "first", cwd=project)
    return project


def write_results(root: Path, success: float) -> dict[str, Any]:
    metrics = {"edit_success": {"emuedit": {"overall": success}}}
    (root / "reports/metrics.json").write_text(json.dumps(metrics))
    (root / "dvc.lock").write_text(f"schema: '2.0' # {success}\n")
    return metrics


def commit_now(root: Path, branch: str, metrics: dict[str, Any], title: str) -> str:
    return commit_results(root, branch, FILES, metrics, title, read_start(root))


@pytest.mark.slow
def test_results_are_committed_to_a_branch_and_nothing_else_changes(committed: Path, shell: Shell) -> None:
    head = shell("git", "rev-parse", "HEAD", cwd=committed)
    (committed / "make.py").write_text("# being edited\n")
    metrics = write_results(committed, 0.5)
    state = shell("git", "status", "--porcelain", cwd=committed)
    commit = commit_now(committed, "retrained", metrics, "Retrain (schedule: weekly)")
    assert shell("git", "rev-parse", "HEAD", cwd=committed) == head
    assert shell("git", "status", "--porcelain", cwd=committed) == state
    assert shell("git", "show", "--stat", "--format=%s", commit, cwd=committed).splitlines()[0] == "Retrain (schedule: weekly)"
    changed = shell("git", "diff", "--name-only", "HEAD", "retrained", cwd=committed).split()
    assert changed == ["dvc.lock", "reports/metrics.json"]
    message = shell("git", "log", "-1", "--format=%b", "retrained", cwd=committed)
    assert "edit_success.emuedit.overall 0.4 -> 0.5 (+0.1)" in message

    again = commit_now(committed, "retrained", metrics, "Retrain (person: a)")
    assert again == commit, "an unchanged result makes no commit"
    next_commit = commit_now(committed, "retrained", write_results(committed, 0.6), "Retrain (data: new captions)")
    assert shell("git", "rev-parse", "retrained~1", cwd=committed).strip() == commit
    assert "0.5 -> 0.6 (+0.1)" in shell("git", "log", "-1", "--format=%b", next_commit, cwd=committed)


@pytest.mark.slow
def test_results_are_committed_with_the_code_that_made_them(committed: Path, shell: Shell) -> None:
    first = commit_now(committed, "retrained", write_results(committed, 0.5), "Retrain (schedule: weekly)")
    (committed / "make.py").write_text("# better\n")
    (committed / "new.py").write_text("# new\n")
    shell("git", "add", "make.py", "new.py", cwd=committed)
    shell("git", "commit", "-qm", "better", cwd=committed)
    head = shell("git", "rev-parse", "HEAD", cwd=committed).strip()
    second = commit_now(committed, "retrained", write_results(committed, 0.6), "Retrain (data: new)")
    assert shell("git", "diff", "--name-only", "HEAD", second, cwd=committed).split() == ["dvc.lock", "reports/metrics.json"]
    assert shell("git", "show", "-s", "--format=%P", second, cwd=committed).split() == [first, head]
    assert "overall 0.5 -> 0.6 (+0.1)" in shell("git", "show", "-s", "--format=%b", second, cwd=committed)
    assert commit_now(committed, "retrained", {}, "Retrain (person: a)") == second
    third = commit_now(committed, "retrained", write_results(committed, 0.7), "Retrain (data: new)")
    assert shell("git", "show", "-s", "--format=%P", third, cwd=committed).split() == [second], "HEAD is in the branch already"


@pytest.mark.slow
def test_params_that_are_not_committed_are_published_as_they_were_before_the_run(committed: Path, shell: Shell) -> None:
    (committed / "params.yaml").write_text("first: {size: 4}\n")
    (committed / "dvc.yaml").write_text("stages: {}\n")
    (committed / "make.py").write_text("# being edited\n")
    at_start = read_start(committed)
    (committed / "params.yaml").write_text("first: {size: 5}  # for the next run, edited while this one trains\n")
    state = shell("git", "status", "--porcelain", cwd=committed)
    metrics, graph = write_results(committed, 0.4), dvc_graph.Graph(committed, (), (Path("reports/metrics.json"),), {})
    commit = publication.publish(graph, False, "retrained", metrics, "person: a", at_start)
    assert shell("git", "status", "--porcelain", cwd=committed) == state
    assert shell("git", "diff", "--name-only", "HEAD", commit, cwd=committed).split() == ["dvc.yaml", "params.yaml"]
    assert shell("git", "show", f"{commit}:params.yaml", cwd=committed) == "first: {size: 4}\n"
    message = shell("git", "show", "-s", "--format=%b", commit, cwd=committed)
    assert "made with uncommitted changes: make.py" in message


@pytest.mark.slow
def test_a_branch_is_made_also_where_nothing_changed(committed: Path, shell: Shell) -> None:
    head = shell("git", "rev-parse", "HEAD", cwd=committed).strip()
    assert commit_now(committed, "retrained", {}, "Retrain (person: a)") == head
    assert shell("git", "rev-parse", "retrained", cwd=committed).strip() == head


def test_a_second_clone_goes_on_with_the_branch_of_the_remote(committed: Path, tmp_path: Path, shell: Shell) -> None:
    """Its first commit began an unrelated branch, which could not be pushed."""
    commit = shell("git", "rev-parse", "HEAD", cwd=committed).strip()
    other = shell("git", "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "of another clone", cwd=committed).strip()
    shell("git", "update-ref", "refs/remotes/origin/retrained", other, cwd=committed)
    assert publication._tip_elsewhere(committed, "retrained") == other
    shell("git", "update-ref", "refs/remotes/second/retrained", other, cwd=committed)
    assert publication._tip_elsewhere(committed, "retrained") == other, "two remotes with the same commit"
    shell("git", "update-ref", "refs/remotes/second/retrained", commit, cwd=committed)
    assert publication._tip_elsewhere(committed, "retrained") is None, "two remotes, and no way to know which one is meant"
    assert publication._tip_elsewhere(committed, "other") is None


def test_the_branch_that_is_checked_out_is_refused(committed: Path, shell: Shell) -> None:
    branch = shell("git", "branch", "--show-current", cwd=committed).strip()
    with pytest.raises(PublicationError, match="want a branch that is not checked out"):
        commit_now(committed, branch, {}, "Retrain")


@pytest.mark.slow
def test_a_branch_that_another_worktree_has_checked_out_is_refused(committed: Path, tmp_path: Path, shell: Shell) -> None:
    """Moving it would leave the reverse of the result staged there."""
    shell("git", "worktree", "add", "-q", "-b", "retrained", tmp_path / "results", cwd=committed)
    with pytest.raises(PublicationError, match=r"want a branch that is not checked out, got retrained, which .*/results has"):
        publication.check(dvc_graph.Graph(committed, (), (), {}), False, "retrained")
    shell("git", "worktree", "remove", tmp_path / "results", cwd=committed)
    publication.check(dvc_graph.Graph(committed, (), (), {}), False, "retrained")


@pytest.mark.parametrize(("present", "name"), [("retrained", "retrained/nightly"), ("retrained/nightly", "retrained")])
def test_a_branch_that_git_cannot_create_beside_another_is_refused(
    present: str, name: str, committed: Path, shell: Shell
) -> None:
    shell("git", "branch", present, cwd=committed)
    graph = dvc_graph.Graph(committed, (), (), {})
    with pytest.raises(PublicationError, match=f"want a branch that git can create, got {name} beside {present}"):
        publication.check(graph, False, name)
    publication.check(graph, False, "retrained-nightly")
    publication.check(graph, False, present)


def test_new_code_that_is_not_committed_is_listed_in_the_commit(committed: Path, shell: Shell) -> None:
    for name in ("code/größe.py", "make.py", "notes.py", "code/notes.txt", "code/ignored.py"):
        (committed / name).parent.mkdir(exist_ok=True)
        (committed / name).write_text("# new")
    (committed / ".gitignore").write_text("ignored.py\n")
    at_start = read_start(committed)
    (committed / "code/after.py").write_text("# added while the stages ran")
    (committed / "dvc.lock").write_text("stages: {network: {cmd: a, deps: [{path: code, md5: a.dir}]}}\n")
    publication.publish(dvc_graph.Graph(committed, (), (), {}), False, "retrained", {}, "person: a", at_start)
    message = shell("git", "show", "-s", "--format=%b", "retrained", cwd=committed)
    assert "made with uncommitted changes: make.py, code/größe.py\n" in message


@pytest.mark.parametrize("name", ["my data", "a..b", "-x", ""])
def test_what_is_no_name_of_a_branch_is_refused(name: str, committed: Path) -> None:
    with pytest.raises(PublicationError, match="is not a valid branch name"):
        commit_now(committed, name, {}, "Retrain")


def test_that_nothing_can_be_committed_is_said_before_anything_runs(
    committed: Path, project: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = dvc_graph.Graph(committed, (), (), {})
    publication.check(graph, False, "retrained")
    for key in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(key, raising=False)
    shell("git", "config", "user.useConfigOnly", "true", cwd=committed)
    with pytest.raises(PublicationError, match=r"want a name and an address for commits, got none; set git config user.name"):
        publication.check(graph, False, "retrained")
    publication.check(graph, False, "")


def test_without_a_commit_there_is_no_branch_to_write(project: Path) -> None:
    with pytest.raises(GitError, match="`git rev-parse --verify HEAD` failed: fatal: Needed a single revision"):
        publication.check(dvc_graph.Graph(project, (), (), {}), False, "retrained")


def test_missing_git_is_not_taken_for_an_invalid_name(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(committed))
    with pytest.raises(GitError, match="want git in PATH, got none"):
        publication.check(dvc_graph.Graph(committed, (), (), {}), False, "retrained")


@pytest.mark.slow
@pytest.mark.usefixtures("dvc_in_process")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "want a default DVC remote to push data to, got none; create one with `emuedit remote init"),
        ("[core]\n    remote = gone\n", "got gone, which has no URL; create one"),
    ],
)
def test_a_remote_that_is_missing_is_said_before_anything_runs(config: str, words: str, project: Path) -> None:
    publication.check_remote(project)
    (project / ".dvc/config").write_text(config)
    with pytest.raises(PublicationError, match=words):
        publication.check_remote(project)


@pytest.mark.slow
def test_the_branch_can_be_checked_out_and_reproduced(project: Path, dvc_run: Callable[..., str], shell: Shell) -> None:
    """DVC does not save an out of which git tracks a file."""
    dvc_run("repro", "-q")
    shell("git", "add", ".", cwd=project)
    shell("git", "add", "--force", "reports/metrics.json", cwd=project)  # as retrains of earlier versions committed it
    shell("git", "commit", "-qm", "a pipeline", cwd=project)
    graph = dvc_graph.read(project)
    publication.check(graph, False, "retrained")
    publication.publish(graph, False, "retrained", {}, "person: a")
    tracked = shell("git", "ls-tree", "-r", "--name-only", "retrained", cwd=project).split()
    assert "metrics/reports/metrics.json" in tracked
    assert "reports/metrics.json" not in tracked
    shell("git", "checkout", "-q", "retrained", cwd=project)
    (project / "in.txt").write_text("0.7\n")
    dvc_run("repro", "-q")
    assert json.loads((project / "reports/metrics.json").read_text())["edit_success"]["emuedit"]["overall"] == 0.7
    assert dvc_run("status", "--json").strip() == "{}"
    publication.publish(dvc_graph.read(project), False, "next", {"a": 1}, "person: a")
    assert "0.7" in shell("git", "show", "next:metrics/reports/metrics.json", cwd=project)


def test_metrics_that_dvc_does_not_cache_are_committed_where_they_are_and_an_out_in_their_place_is_refused(
    committed: Path, shell: Shell
) -> None:
    file = Path("reports/metrics.json")
    graph = dvc_graph.Graph(committed, (dvc_graph.Stage("scores", outs=(file,)),), (file,), {})
    publication.publish(graph, False, "retrained", write_results(committed, 0.5), "person: a")
    assert "0.5" in shell("git", "show", "retrained:reports/metrics.json", cwd=committed)
    stages = tuple(dvc_graph.Stage(out, outs=(Path(out),), cached=(Path(out),)) for out in ("reports", "metrics"))
    with pytest.raises(PublicationError, match=r"metrics/reports/metrics.json is both a stage output and the path of"):
        publication.check(dvc_graph.Graph(committed, stages, (file,), {}), False, "retrained")


@pytest.mark.parametrize("workspace", ["project", "temporary/project"])
def test_a_remote_in_a_temporary_folder_is_refused_unless_the_workspace_lies_there_too(
    workspace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, root = tmp_path / "temporary", tmp_path / workspace
    root.mkdir(parents=True)
    monkeypatch.setattr(publication, "TEMPORARY", ())
    monkeypatch.setattr(publication.tempfile, "tempdir", str(temporary))
    for url in ("s3://bucket/emuedit", f"{tmp_path}/lasting"):
        monkeypatch.setattr(publication.dvc_remote, "read_settings", settings_with(url))
        publication.check_remote(root)
    monkeypatch.setattr(publication.dvc_remote, "read_settings", settings_with(f"{temporary}/.local/share/emuedit/dvc"))
    if root.is_relative_to(temporary):
        publication.check_remote(root)
    else:
        with pytest.raises(PublicationError, match=r"want a permanent DVC remote, got .*/dvc, which is lost with .*--local"):
            publication.check_remote(root)


def settings_with(url: str) -> Callable[[Path], dict[str, str]]:
    return lambda root: {"core.remote": "local", "remote.local.url": url}


def test_only_changed_numbers_are_listed() -> None:
    assert metric_changes({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.5, "c": 3.0}) == ["b 2 -> 2.5 (+0.5)", "c (new) 3"]
    assert metric_changes({}, {f"m{number}": number for number in range(50)})[-1] == "and 10 more"


_DVC_MESSAGES = """WARNING: The cache is large.
ERROR: failed to push: the store is away

Having any troubles? Hit us up at https://dvc.org/support, we are always happy to help!
"""


def test_a_store_that_is_away_is_tried_again(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([1, 1, 0])

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, next(results), "", _DVC_MESSAGES)

    monkeypatch.setattr(publication.push_access, "try_write", lambda root: None)  # it can be written again after each failure
    monkeypatch.setattr(publication.subprocess, "run", run)
    pauses: list[float] = []
    push_data(committed, pauses.append)
    assert pauses == [10.0, 60.0]
    results = iter([1, 1, 1])
    with pytest.raises(PublicationError, match="data were not pushed: failed to push: the store is away; run `emuedit"):
        push_data(committed, pauses.append)


@pytest.mark.parametrize("reason", ["schedule: weekly", "data: new captions", "metric: success fell", "person: a@b"])
def test_a_reason_is_kept(reason: str) -> None:
    assert complete_reason(reason) == reason


def test_without_a_reason_it_was_a_person() -> None:
    assert complete_reason("").startswith("person: ")
    with pytest.raises(ReasonError, match="want a reason that begins with schedule:, data:, metric:, person:, got 'because'"):
        complete_reason("because")
