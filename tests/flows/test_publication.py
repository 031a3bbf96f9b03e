"""What a retrain pushes and commits, without touching the working tree."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import publication
from flows.publication import PublicationError, commit_results, metric_changes, push_data
from flows.triggers import TriggerError, complete_reason

Shell = Callable[..., str]
FILES = [Path("dvc.lock"), Path("reports/metrics.json")]


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


def test_results_are_committed_to_a_branch_and_nothing_else_changes(committed: Path, shell: Shell) -> None:
    head = shell("git", "rev-parse", "HEAD", cwd=committed)
    (committed / "make.py").write_text("# being edited\n")
    metrics = write_results(committed, 0.5)
    state = shell("git", "status", "--porcelain", cwd=committed)
    commit = commit_results(committed, "retrained", FILES, metrics, "Retrain (schedule: weekly)")
    assert shell("git", "rev-parse", "HEAD", cwd=committed) == head
    assert shell("git", "status", "--porcelain", cwd=committed) == state
    assert shell("git", "show", "--stat", "--format=%s", commit, cwd=committed).splitlines()[0] == "Retrain (schedule: weekly)"
    changed = shell("git", "diff", "--name-only", "HEAD", "retrained", cwd=committed).split()
    assert changed == ["dvc.lock", "reports/metrics.json"]
    message = shell("git", "log", "-1", "--format=%b", "retrained", cwd=committed)
    assert "edit_success.emuedit.overall 0.4 -> 0.5 (+0.1)" in message

    again = commit_results(committed, "retrained", FILES, metrics, "Retrain (person: a)")
    assert again == commit, "an unchanged result makes no commit"
    next_commit = commit_results(committed, "retrained", FILES, write_results(committed, 0.6), "Retrain (data: new captions)")
    assert shell("git", "rev-parse", "retrained~1", cwd=committed).strip() == commit
    assert "0.5 -> 0.6 (+0.1)" in shell("git", "log", "-1", "--format=%b", next_commit, cwd=committed)


def test_results_are_committed_with_the_code_that_made_them(committed: Path, shell: Shell) -> None:
    first = commit_results(committed, "retrained", FILES, write_results(committed, 0.5), "Retrain (schedule: weekly)")
    (committed / "make.py").write_text("# better\n")
    (committed / "new.py").write_text("# new\n")
    shell("git", "add", "make.py", "new.py", cwd=committed)
    shell("git", "commit", "-qm", "better", cwd=committed)
    head = shell("git", "rev-parse", "HEAD", cwd=committed).strip()
    second = commit_results(committed, "retrained", FILES, write_results(committed, 0.6), "Retrain (data: new)")
    assert shell("git", "diff", "--name-only", "HEAD", second, cwd=committed).split() == ["dvc.lock", "reports/metrics.json"]
    assert shell("git", "show", "-s", "--format=%P", second, cwd=committed).split() == [first, head]
    assert "overall 0.5 -> 0.6 (+0.1)" in shell("git", "show", "-s", "--format=%b", second, cwd=committed)
    assert commit_results(committed, "retrained", FILES, {}, "Retrain (person: a)") == second
    third = commit_results(committed, "retrained", FILES, write_results(committed, 0.7), "Retrain (data: new)")
    assert shell("git", "show", "-s", "--format=%P", third, cwd=committed).split() == [second], "HEAD is in the branch already"


def test_params_that_are_not_committed_are_published_as_they_were_before_the_run(committed: Path, shell: Shell) -> None:
    (committed / "params.yaml").write_text("first: {size: 4}\n")
    (committed / "dvc.yaml").write_text("stages: {}\n")
    (committed / "make.py").write_text("# being edited\n")
    source = publication.read_source(committed)
    (committed / "params.yaml").write_text("first: {size: 5}  # for the next run, edited while this one trains\n")
    state = shell("git", "status", "--porcelain", cwd=committed)
    metrics = write_results(committed, 0.4)
    commit = commit_results(committed, "retrained", FILES, metrics, "Retrain (person: a)", source)
    assert shell("git", "status", "--porcelain", cwd=committed) == state
    assert shell("git", "diff", "--name-only", "HEAD", commit, cwd=committed).split() == ["dvc.yaml", "params.yaml"]
    assert shell("git", "show", f"{commit}:params.yaml", cwd=committed) == "first: {size: 4}\n"
    message = shell("git", "show", "-s", "--format=%b", commit, cwd=committed)
    assert "made with changes that are not committed: make.py" in message


def test_a_branch_is_made_also_where_nothing_changed(committed: Path, shell: Shell) -> None:
    head = shell("git", "rev-parse", "HEAD", cwd=committed).strip()
    assert commit_results(committed, "retrained", FILES, {}, "Retrain (person: a)") == head
    assert shell("git", "rev-parse", "retrained", cwd=committed).strip() == head


def test_the_branch_that_is_checked_out_is_refused(committed: Path, shell: Shell) -> None:
    branch = shell("git", "branch", "--show-current", cwd=committed).strip()
    with pytest.raises(PublicationError, match="want a branch that is not checked out"):
        commit_results(committed, branch, FILES, {}, "Retrain")


@pytest.mark.parametrize("name", ["my data", "a..b", "-x", ""])
def test_what_is_no_name_of_a_branch_is_refused(name: str, committed: Path) -> None:
    with pytest.raises(PublicationError, match="want the name of a branch, got"):
        commit_results(committed, name, FILES, {}, "Retrain")


def test_that_nothing_can_be_committed_is_said_before_anything_runs(
    committed: Path, project: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    publication.check(committed, False, "retrained")
    for key in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(key, raising=False)
    shell("git", "config", "user.useConfigOnly", "true", cwd=committed)
    with pytest.raises(PublicationError, match=r"want a name and an address for commits, got none; set git config user.name"):
        publication.check(committed, False, "retrained")
    publication.check(committed, False, "")


def test_without_a_commit_there_is_no_branch_to_write(project: Path) -> None:
    with pytest.raises(PublicationError, match="git rev-parse failed: fatal: Needed a single revision"):
        publication.check(project, False, "retrained")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "want a default remote of DVC that data are pushed to, got none; make one by `emuedit remote init"),
        ("[core]\n    remote = gone\n", "got gone, which has no url; make one"),
    ],
)
def test_a_remote_that_is_missing_is_said_before_anything_runs(config: str, words: str, project: Path) -> None:
    publication.check(project, True, "")
    (project / ".dvc/config").write_text(config)
    with pytest.raises(PublicationError, match=words):
        publication.check(project, True, "")


def test_only_changed_numbers_are_listed() -> None:
    assert metric_changes({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.5, "c": 3.0}) == ["b 2 -> 2.5 (+0.5)", "c (new) 3"]
    assert metric_changes({}, {f"m{number}": number for number in range(50)})[-1] == "and 10 more"


def test_a_store_that_is_away_is_tried_again(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([1, 1, 0])

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, next(results), "", "ERROR: failed to push: the store is away")

    monkeypatch.setattr(publication.subprocess, "run", run)
    pauses: list[float] = []
    push_data(committed, pauses.append)
    assert pauses == [10.0, 60.0]
    results = iter([1, 1, 1])
    with pytest.raises(PublicationError, match="the data were not pushed: ERROR: failed to push: the store is away; `emuedit"):
        push_data(committed, pauses.append)


@pytest.mark.parametrize("reason", ["schedule: weekly", "data: new captions", "metric: success fell", "person: a@b"])
def test_a_reason_is_kept(reason: str) -> None:
    assert complete_reason(reason) == reason


def test_without_a_reason_it_was_a_person() -> None:
    assert complete_reason("").startswith("person: ")
    with pytest.raises(TriggerError, match="want a reason that begins with schedule:, data:, metric:, person:, got 'because'"):
        complete_reason("because")
