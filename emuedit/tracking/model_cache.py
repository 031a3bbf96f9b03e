"""Cache of downloaded models in the user's cache folder: written atomically, limited in number, safe to delete.

If the cache is not writable, because the home folder is read-only or the disk full, this process uses a temporary folder.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from emuedit.data.user_cache import cache_folder, entry_ages
from emuedit.tracking.service_errors import FullDiskError

MAX_MODELS = 8
"""Maximum number of models; beyond it, those unused for a day are deleted, the longest unused first."""
_UNUSED_S = 24 * 3600.0
_PART = ".part-"  # prefix of the folders of incomplete models
_IN_USE = ".in-use"  # a file in the folder of a model, locked by those that keep or make the model

Download = Callable[[Path], Path]
"""Downloads a model below a folder, and returns its path."""


def folder() -> Path | None:
    """The folder of the cache; None for a user without a home folder."""
    cache = cache_folder()
    return cache and cache / "registered-models"


def get(key: str, download: Download) -> Path:
    """The model with this key, downloaded if it is not cached.

    Raises the errors of `download`, but those of a full disk only if the temporary folder is full, too.
    """
    models = folder()
    if models is not None and (models / key).is_dir():
        with contextlib.suppress(OSError):  # a read-only cache
            os.utime(models / key)
        return models / key
    problem = "because there is no home folder"
    if models is not None:
        try:
            models.mkdir(parents=True, exist_ok=True)
            _prune_parts(models)
            path = _fill(models, key, download)
            _prune(models, key)
            return path
        except (OSError, FullDiskError) as error:  # or an error of the download, which the second attempt raises
            reason = "its disk or quota is full" if isinstance(error, FullDiskError) else error.strerror or str(error)[:200]
            problem = f"because {models} cannot be used: {reason}"
    temporary = Path(tempfile.mkdtemp(prefix="emuedit-model-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    path = download(temporary)
    print(f"the model is not cached, {problem}", file=sys.stderr, flush=True)
    return path


def keep(model: Path) -> None:
    """Keep a model from being deleted until this process exits, also over `os.execve`.

    Without effect where no file can be locked: in a read-only cache, and on a file system without flock.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(model / _IN_USE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.set_inheritable(descriptor, True)


def _is_kept(model: Path) -> bool:
    try:
        with (model / _IN_USE).open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # nobody has kept it
        return False
    except OSError:
        return True
    return False


def _fill(models: Path, key: str, download: Download) -> Path:
    with _part(models) as part:
        folder = part / "download"
        folder.mkdir()
        path = download(folder)
        try:
            path.rename(models / key)
        except OSError:
            if not (models / key).is_dir():  # otherwise another process was faster
                raise
    return models / key


@contextlib.contextmanager
def _part(models: Path) -> Iterator[Path]:
    """A folder for an incomplete model, deleted at the end. Its lock, where files can be locked, ends with this process."""
    with tempfile.TemporaryDirectory(dir=models, prefix=_PART, ignore_cleanup_errors=True) as temporary:
        lock = Path(temporary, f"{_IN_USE}.new")  # renamed once it is locked: unlocked, it marks what a killed process left
        with lock.open("w+") as stream:  # readable, since a shared lock on NFS requires that
            try:
                fcntl.flock(stream, fcntl.LOCK_SH)
                lock.rename(lock.with_name(_IN_USE))
            except OSError:  # a file system without flock
                lock.unlink()
            yield Path(temporary)


def _delete(path: Path) -> None:
    """Delete a folder of the cache; a process that is killed now leaves no damaged model under its name."""
    with contextlib.suppress(OSError), _part(path.parent) as part:
        path.rename(part / path.name)


def _prune_parts(models: Path) -> None:
    """Delete leftovers of killed downloads and deletions: at once if they were locked, otherwise after a day."""
    for age_s, path in entry_ages(models):
        with contextlib.suppress(OSError):  # a folder of another user
            if path.name.startswith(_PART) and ((path / _IN_USE).exists() or age_s > _UNUSED_S) and not _is_kept(path):
                _delete(path)


def _prune(models: Path, key: str) -> None:
    """Delete excess models."""
    complete = [(age_s, path) for age_s, path in entry_ages(models) if path.name != key and not path.name.startswith(".")]
    for age_s, path in complete[MAX_MODELS - 1 :]:
        if age_s > _UNUSED_S and not _is_kept(path):
            _delete(path)
