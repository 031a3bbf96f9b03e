"""Checks of the working folder: leftover locks of DVC, unfinished uploads of its remote, and sizes of caches."""

import configparser
import fcntl
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from emuedit.operations import dvc_remote
from emuedit.operations.bucket import Bucket
from emuedit.operations.health_finding import Finding
from emuedit.operations.machine_checks import cache_folder
from emuedit.operations.remote_error import RemoteError

_LOCKS = Path(".dvc/tmp")
_LARGE_GB = 20
_GB = 10**9
_UPLOAD_AGE = timedelta(days=1)


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
        yield Finding("DVC locks", "pass", "none held, repository " + ("in use by another DVC" if _is_locked() else "free"))


def check_unfinished_uploads() -> Iterator[Finding]:
    """Multipart uploads older than a day in the S3 remote, which use space and appear in no listing."""
    remote = _s3_remote()
    if remote is None:
        yield Finding("unfinished uploads", "pass", "no S3 remote is configured")
        return
    try:
        location = dvc_remote.to_location(remote)
        uploads = Bucket(location).call("list_multipart_uploads", Prefix=location.prefix).get("Uploads", [])
    except RemoteError as error:
        yield Finding("unfinished uploads", "warn", f"unknown: {error}", "run `uv run emuedit remote check`")
        return
    old = [upload for upload in uploads if upload["Initiated"] < datetime.now(UTC) - _UPLOAD_AGE]
    fix = "add a lifecycle rule AbortIncompleteMultipartUpload, see infra/terraform"
    yield Finding("unfinished uploads", "warn" if old else "pass", f"{len(old)} older than a day in {remote['url']}", fix)


def check_caches() -> Iterator[Finding]:
    """Sizes of the caches."""
    for folder, fix in (
        (cache_folder(), f"rm -r {cache_folder()}/models"),
        (Path("scratch"), "rm -r scratch, if no retrain runs"),
    ):
        size_gb = _size(folder) / _GB
        yield Finding("cache", "warn" if size_gb > _LARGE_GB else "pass", f"{folder}: {size_gb:.2f} GB", fix)


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


def _is_locked() -> bool:
    """Whether a process holds DVC's lock of the whole repository; the existence of the file alone means nothing."""
    try:
        with (_LOCKS / "lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _s3_remote() -> dict[str, str] | None:
    """Options of DVC's default remote if it is in S3."""
    parser = configparser.ConfigParser()
    parser.read([".dvc/config", ".dvc/config.local"])
    section = f"'remote \"{parser.get('core', 'remote', fallback='')}\"'"
    if section not in parser or not parser[section].get("url", "").startswith("s3://"):
        return None
    return dict(parser[section])


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(root, name).lstat().st_size
            except FileNotFoundError:  # removed meanwhile
                continue
    return total


CHECKS = (check_dvc_locks, check_unfinished_uploads, check_caches)
