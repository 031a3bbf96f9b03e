"""Run git: in English, without questions such as for a password, and with a time limit."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

TIMEOUT_S = 600.0
"""Default time limit in seconds, long enough to read all files of a slow file system."""
_MAX_REASON_CHARS = 500


class GitError(RuntimeError):
    """Raised if git is missing, fails or does not answer in time."""


def run(root: Path, *words: str, environment: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """The output of `git WORDS` in the folder `root`, without the newline at its end.

    environment: additional variables. Raises GitError with git's text if it fails.
    """
    process = _start(root, words, environment, timeout_s)
    if process.returncode:
        reason = " ".join(process.stderr.split())[-_MAX_REASON_CHARS:] or f"exit status {process.returncode}"
        raise GitError(f"`git {' '.join(words)}` failed: {reason}")
    return process.stdout.removesuffix("\n")


def try_run(root: Path, *words: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """As `run`, for questions; None if git is missing or fails, as it does outside a repository and for an unknown name.

    Raises GitError if it does not answer in time.
    """
    if not shutil.which("git"):
        return None
    process = _start(root, words, None, timeout_s)
    return None if process.returncode else process.stdout.removesuffix("\n")


def _start(
    root: Path, words: tuple[str, ...], environment: Mapping[str, str] | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    if not shutil.which("git"):
        raise GitError("want git in PATH, got none; install git")
    variables = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **(environment or {})}
    command = ["git", *words]
    try:
        return subprocess.run(  # noqa: S603 - git itself, with the words of the caller
            command, cwd=root, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise GitError(f"`git {words[0]}` gave no answer within {timeout_s:g} s; check the network and the disk") from error
