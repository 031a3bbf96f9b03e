"""Checks of the working folder: locks and state of DVC, its remote, orphaned stages, and sizes of caches."""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from emuedit.data import dvc_state
from emuedit.data.user_cache import cache_folder
from emuedit.operations.health.health_finding import Finding
from emuedit.operations.health.server_processes import orphaned_stages
from emuedit.operations.storage import dvc_remote
from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.remote_error import RemoteError

_LOCKS = Path(".dvc/tmp")
_LARGE_GB = 20
_GB = 10**9
_UPLOAD_AGE = timedelta(days=1)
_STALE_S = 30 * 86400.0
_STALE_GB = 1
_DVC_S = 20.0


def check_dvc_locks() -> Iterator[Finding]:
    """Locks of DVC by a dead process, or by another program that reuses its process id."""
    entries = list(_lock_entries())
    blocking = [(path, pid) for path, pid in entries if psutil.pid_exists(pid) and not _is_dvc(pid)]
    if blocking:
        path, pid = blocking[0]
        detail = (
            f"{_LOCKS / 'rwlock'} blocks {path} for process {pid}, which is not DVC: DVC was killed, and its process id is reused"
        )
        yield Finding("DVC locks", "fail", detail, f"if no retrain runs here: rm {_LOCKS / 'rwlock'}")
    elif dead := [pid for _, pid in entries if not psutil.pid_exists(pid)]:
        yield Finding(
            "DVC locks", "pass", f"left by process {dead[0]}, which no longer exists; the next DVC command removes them"
        )
    elif entries:
        yield Finding("DVC locks", "pass", f"held by DVC, process {entries[0][1]}")
    else:
        yield _repository_lock()


def check_dvc_state() -> Iterator[Finding]:
    """No other account can write what a plain `dvc` command unpickles; our own commands use a private folder."""
    folder = dvc_state.configured() or dvc_state.DEFAULT
    if not Path(".dvc").is_dir() or not (part := dvc_state.find_open_part(folder)):
        yield Finding("DVC state", "pass", str(folder))
        return
    detail = f"other accounts can write to {part}, and plain `dvc` commands run code that they find there"
    fix = f"uv run dvc config --local core.site_cache_dir {shlex.quote(str(dvc_state.private_folder()))}"
    yield Finding(
        "DVC state", "warn", detail, f"unset {dvc_state.FOLDER_ENV}; {fix}" if os.environ.get(dvc_state.FOLDER_ENV) else fix
    )


def check_unfinished_uploads() -> Iterator[Finding]:
    """Multipart uploads older than a day in the S3 remote, which use space and appear in no listing."""
    remote = dvc_remote.read_s3_remote()
    if remote is None:
        yield Finding("unfinished uploads", "pass", "no S3 remote is configured")
        return
    try:
        starts = Bucket(dvc_remote.to_location(remote)).upload_starts()
    except RemoteError as error:
        yield Finding("unfinished uploads", "warn", f"unknown: {error}", "run `uv run emuedit remote check`")
        return
    n_old = sum(start < datetime.now(UTC) - _UPLOAD_AGE for start in starts)
    options = {"--endpoint": "endpointurl", "--region": "region", "--profile": "profile"}
    words = [remote["url"], *(f"{option} {remote[key]}" for option, key in options.items() if key in remote)]
    fix = f"`uv run emuedit remote init {' '.join(words)}` adds a lifecycle rule that ends them; infra/terraform has it too"
    yield Finding("unfinished uploads", "warn" if n_old else "pass", f"{n_old} older than a day in {remote['url']}", fix)


def check_data_in_remote() -> Iterator[Finding]:
    """The data of dvc.lock is in the remote, so that another clone can pull it.

    `dvc status --cloud` reports nothing for data that is missing on both sides, so it is not used here. Without `--granular`, DVC
    looks only for the listing of a folder, not for its files.
    """
    if not Path(".dvc").is_dir():
        yield Finding("data in remote", "pass", "no DVC project here")
        return
    command = [sys.executable, "-W", "ignore", "-m", "dvc", "data", "status", "--not-in-remote", "--granular", "--json"]
    environment = {**os.environ, **dvc_state.variables(), "DVC_NO_ANALYTICS": "true"}
    by_hand = "run `uv run dvc data status --not-in-remote --granular`"
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_DVC_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        yield Finding("data in remote", "warn", f"unknown: DVC did not finish within {_DVC_S:g} s", by_hand)
        return
    if process.returncode:
        reason = " ".join(dvc_remote.failure_text(process.stderr).split())
        yield Finding("data in remote", "warn", f"unknown: {reason or 'DVC failed'}", by_hand)
        return
    paths = json.loads(process.stdout or "{}").get("not_in_remote", [])
    folders = tuple(path for path in paths if path.endswith("/"))
    missing = [path for path in paths if not any(path != folder and path.startswith(folder) for folder in folders)]
    detail = f"{len(missing)} missing, such as {missing[0]}" if missing else "complete"
    fix = "uv run dvc push; if it says that files are missing, `uv run retrain` makes them again"
    fix += "; if it says that everything is up to date, `uv run emuedit remote verify --repair`"
    yield Finding("data in remote", "warn" if missing else "pass", detail, fix)


def check_orphaned_stages() -> Iterator[Finding]:
    """No stage runs here without its DVC: the next one would write the same outputs."""
    orphans = orphaned_stages(Path())
    if orphans:
        pids = " ".join(str(process.pid) for process in orphans)
        detail = f"{len(orphans)} processes whose DVC was killed still write here: {pids}"
        yield Finding("orphaned stages", "fail", detail, f"kill {pids}")
    else:
        yield Finding("orphaned stages", "pass", "none")


def check_caches() -> Iterator[Finding]:
    """Sizes of the caches, and of work in scratch that nothing has touched for a month."""
    caches = [(cache, f"rm -r {cache}/models")] if (cache := cache_folder()) else []
    for folder, fix in (*caches, (Path("scratch"), "rm -r scratch, if no retrain runs")):
        size_gb = _size(folder) / _GB
        yield Finding("cache", "warn" if size_gb > _LARGE_GB else "pass", f"{folder}: {size_gb:.2f} GB", fix)
    stale = [folder for folder in Path("scratch").glob("*/*/") if time.time() - _last_change(folder) > _STALE_S]
    if (stale_gb := sum(map(_size, stale)) / _GB) > _STALE_GB:
        detail = f"{stale_gb:.2f} GB in {len(stale)} folders of scratch, unchanged for 30 days, such as {stale[0]}"
        yield Finding("stale work", "warn", detail, f"rm -r {' '.join(map(str, stale[:5]))}")


def _lock_entries() -> Iterator[tuple[str, int]]:
    """Path and process of each entry of DVC's file of read and write locks."""
    try:
        content: dict[str, dict[str, Any]] = json.loads((_LOCKS / "rwlock").read_text())
    except (FileNotFoundError, ValueError):  # missing, or just being written
        return
    for path, kinds in content.items():
        for holders in kinds.values():
            for holder in holders if isinstance(holders, list) else [holders]:
                if isinstance(holder, dict) and isinstance(holder.get("pid"), int):
                    yield path, holder["pid"]


def _is_dvc(pid: int) -> bool:
    try:
        words = psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return any("dvc" in Path(word).name or "retrain" in Path(word).name for word in words)


def _repository_lock() -> Finding:
    """Whether a process holds DVC's lock of the whole repository; the existence of the file alone means nothing."""
    state = "free"
    try:
        with (_LOCKS / "lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # exclusive locks need write access on NFS
    except FileNotFoundError:
        pass
    except BlockingIOError:
        state = "in use by another DVC"
    except OSError as error:
        detail = f"{_LOCKS / 'lock'} cannot be locked (flock): {error.strerror}"
        fix = "give this user access to it; on a file system without locks, move the project to another one, such as a local disk"
        return Finding("DVC locks", "fail", detail, fix)
    return Finding("DVC locks", "pass", f"none held, repository {state}")


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(root, name).lstat().st_size
            except FileNotFoundError:  # removed meanwhile
                continue
    return total


def _last_change(folder: Path) -> float:
    """Time of the last change in a folder, in seconds since the epoch; now if its files are being removed."""
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return time.time()


CHECKS = (check_dvc_locks, check_dvc_state, check_unfinished_uploads, check_data_in_remote, check_orphaned_stages, check_caches)
