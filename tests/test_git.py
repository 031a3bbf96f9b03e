"""Answers and errors of git."""

import subprocess
from pathlib import Path

import pytest

from emuedit import git
from emuedit.git import GitError


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "clone").mkdir()
    git.run(tmp_path / "clone", "init", "-q", "-b", "main")
    return tmp_path / "clone"


def test_an_answer_is_what_git_prints_without_the_last_newline(repository: Path) -> None:
    (repository / "new.txt").write_text("")
    assert git.run(repository, "status", "--porcelain") == "?? new.txt"
    assert git.try_run(repository, "symbolic-ref", "--short", "HEAD") == "main"
    assert git.run(
        repository, "var", "GIT_AUTHOR_IDENT", environment={"GIT_AUTHOR_NAME": "Ana", "GIT_AUTHOR_EMAIL": "a@b"}
    ).startswith("Ana <a@b>")


def test_a_failure_is_an_error_with_its_text_or_no_answer(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with pytest.raises(GitError, match=r"^`git rev-parse --verify HEAD` failed: fatal: Needed a single revision$"):
        git.run(repository, "rev-parse", "--verify", "HEAD")
    assert git.try_run(repository, "rev-parse", "--verify", "HEAD") is None
    assert git.try_run(repository.parent, "rev-parse", "--show-toplevel") is None


def test_without_git_there_is_no_answer(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert git.try_run(repository, "status") is None
    with pytest.raises(GitError, match="want git in PATH, got none; install git"):
        git.run(repository, "status")


def test_no_answer_in_time_is_an_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(command: list[str], *, timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", wait)
    for ask in (git.run, git.try_run):
        with pytest.raises(GitError, match=r"`git ls-remote` gave no answer within 0.5 s; check the network"):
            ask(repository, "ls-remote", "origin", timeout_s=0.5)
