"""Checks of the installation: package versions, the lock file, git and environment variables."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from emuedit import git, http_requests
from emuedit.data.writable_folder import why_not_writable
from emuedit.operations.health.health_finding import Finding
from emuedit.operations.servers.local_ports import SERVER_HOSTS

_PROJECT = "emuedit"
_TOOL_S = 10.0
REASONS = {
    "fastapi": "Prefect 3.8 cannot start a flow (0.155 and newer) or list runs (0.151 and newer)",
    "sqlalchemy": "Prefect's scheduler never creates a run under 2.1",
}
"""Known effects of a version out of bounds."""


def check_versions() -> Iterator[Finding]:
    """All direct dependencies are within the bounds of pyproject.toml, which exclude combinations known to fail."""
    n_good = 0
    for text in importlib.metadata.requires(_PROJECT) or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"package {requirement.name}", "fail", "is not installed", "uv sync")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            n_good += 1
            continue
        reason = REASONS.get(requirement.name, "only these versions are tested")
        detail = f"want {requirement.specifier}, got {version}: {reason}"
        yield Finding(f"package {requirement.name}", "fail", detail, f'uv sync, or pip install "{requirement}"')
    capped = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("prefect", *REASONS, "dvc", "mlflow", "torch"))
    yield Finding("packages", "pass", f"{n_good} direct dependencies within their bounds: {capped}")


def check_python() -> Iterator[Finding]:
    """Python 3.11."""
    version = platform.python_version()
    if version.startswith("3.11."):
        yield Finding("python", "pass", version)
    else:
        yield Finding("python", "fail", f"want 3.11, got {version}", "uv venv --python 3.11 && uv sync")


def check_lock() -> Iterator[Finding]:
    """uv.lock matches pyproject.toml."""
    if not Path("uv.lock").exists():
        yield Finding("uv.lock", "pass", "no clone of the project: nothing to compare")
        return
    if not shutil.which("uv"):
        yield Finding("uv.lock", "warn", "cannot be compared: uv is not in PATH", "install uv, or add it to PATH")
        return
    try:
        process = subprocess.run(["uv", "lock", "--check", "--offline"], capture_output=True, timeout=_TOOL_S, check=False)  # noqa: S607
    except subprocess.TimeoutExpired:
        yield Finding("uv.lock", "warn", f"`uv lock --check --offline` took over {_TOOL_S:g} s", "run `uv lock --check`")
        return
    if process.returncode == 0:
        yield Finding("uv.lock", "pass", "matches pyproject.toml")
    elif b"needs to be updated" in process.stderr or b"outdated" in process.stderr:
        yield Finding("uv.lock", "fail", "does not match pyproject.toml", "uv lock && uv sync, and commit uv.lock")
    else:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        yield Finding(
            "uv.lock", "warn", f"cannot be compared without the network: {lines[-1] if lines else ''}", "run `uv lock --check`"
        )


def check_git() -> Iterator[Finding]:
    """git is installed, and the folder is in a clone, so that runs are tagged with their commit."""
    if not shutil.which("git"):
        yield Finding("git", "fail", "is not in PATH; runs cannot be tagged with their commit", "install git")
        return
    commit = git.try_run(Path(), "rev-parse", "--short", "HEAD", timeout_s=_TOOL_S)
    if commit is not None:
        yield Finding("git", "pass", f"commit {commit}")
    else:
        yield Finding(
            "git", "warn", "this folder is not in a clone with a commit", "git init && git add -A && git commit, or clone"
        )


def check_proxies() -> Iterator[Finding]:
    """Proxies are bypassed for this machine; otherwise clients would send requests for local servers to the proxy."""
    names = (name for scheme in ("http", "https", "all") for name in (f"{scheme}_proxy".upper(), f"{scheme}_proxy"))
    proxies = [name for name in names if os.environ.get(name)]
    bypassed = {word.strip() for name in ("NO_PROXY", "no_proxy") for word in os.environ.get(name, "").split(",")}
    missing = [name for name in SERVER_HOSTS if name not in bypassed and "*" not in bypassed]
    if proxies and missing:
        detail = f"{', '.join(proxies)} set, and NO_PROXY lacks {', '.join(missing)}"
        variables = http_requests.no_proxy_variables()
        yield Finding("proxy", "fail", detail, " ".join(["export", *(f"{name}={value}" for name, value in variables.items())]))
    else:
        yield Finding("proxy", "pass", "local servers are reached directly")


def check_prefect_home() -> Iterator[Finding]:
    """Prefect's folder, which contains its local database, is writable."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    if problem := why_not_writable(home):
        yield Finding("PREFECT_HOME", "fail", f"not writable: {problem}", "export PREFECT_HOME=<folder that you can write>")
    else:
        yield Finding("PREFECT_HOME", "pass", str(home))


CHECKS = (check_python, check_versions, check_lock, check_git, check_proxies, check_prefect_home)
