"""Environment of DVC processes: the folder in which DVC remembers the hashes of files, and no proxy for a store of this machine.

DVC's default is /var/tmp/dvc, in which every account of the machine can write, and DVC unpickles what is there: another account
can have it run code. DVC's locks are in the project, so commands with different folders still wait for each other.
"""

import configparser
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from emuedit.data.user_cache import cache_folder
from emuedit.data.writable_folder import make_private, make_private_temporary, why_not_writable
from emuedit.http_requests import no_proxy_variables

FOLDER_ENV = "DVC_SITE_CACHE_DIR"
PLACE = Path("/var/tmp")  # noqa: S108  of private folders only
"""On a local disk: DVC's database, SQLite with a write-ahead log, works on no network file system, as of many home folders."""
DEFAULT = PLACE / "dvc"
"""Where plain `dvc` commands keep it without a setting."""


def variables(root: Path = Path()) -> dict[str, str]:
    """Environment of a DVC process for the project at `root`: a folder of this user, unless `configured` names one.

    A store of this machine is reached past a proxy, as `Bucket` reaches it.
    """
    return ({} if configured(root) else {FOLDER_ENV: str(private_folder())}) | no_proxy_variables()


def configured(root: Path = Path()) -> Path | None:
    """The folder that DVC_SITE_CACHE_DIR, or else DVC's setting `core.site_cache_dir`, names; read without DVC."""
    parser = configparser.RawConfigParser()
    try:
        parser.read([*_global_files(), root / ".dvc/config", root / ".dvc/config.local"])
    except (configparser.Error, UnicodeDecodeError):  # DVC will name the problem
        return None
    folder = os.environ.get(FOLDER_ENV) or parser.get("core", "site_cache_dir", fallback="")
    return Path(folder) if folder else None


def _global_files() -> Iterator[Path]:
    """DVC's settings of all users and of this one, as in dvc/dirs.py."""
    yield Path(os.environ.get("DVC_SYSTEM_CONFIG_DIR") or "/etc/xdg/dvc", "config")
    if folder := os.environ.get("DVC_GLOBAL_CONFIG_DIR"):
        yield Path(folder, "config")
    else:
        with contextlib.suppress(RuntimeError):  # no home folder
            yield Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "dvc/config")


def private_folder() -> Path:
    """The folder of this user, which is made: /var/tmp/emuedit-dvc-UID, or ~/.cache/emuedit/dvc, or else a temporary one.

    It is the first that can be written and is private. DVC itself would make it, and folders above it, with access for everyone.
    """
    name, cache = f"emuedit-dvc-{os.getuid()}", cache_folder()
    for folder in (PLACE / name, *([cache / "dvc"] if cache else [])):
        if make_private(folder) and not why_not_writable(folder):
            return folder
    return make_private_temporary(name)


def find_open_part(folder: Path) -> Path | None:
    """The folder, or one above or below it, in which another account can replace DVC's state; None if there is none.

    Nothing can be replaced behind a folder that only this user can open. Groups count as this user: many accounts have their own.
    """
    place = folder.absolute() / "repo"
    for part in (*reversed(place.parents), place):
        try:
            state = part.stat()
        except OSError:  # not made yet
            return None
        if state.st_uid not in (0, os.getuid()) or state.st_mode & 0o1002 == 0o002:
            return part
        if part != Path("/") and not state.st_mode & 0o001:
            return None
    return None
