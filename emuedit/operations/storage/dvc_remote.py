"""The settings of DVC's remote, read and written through `python -m dvc`, and the subprocesses of dvc and git."""

import configparser
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from emuedit import git
from emuedit.data import dvc_state
from emuedit.git import GitError
from emuedit.operations.storage.bucket import RemoteLocation
from emuedit.operations.storage.remote_error import RemoteError

INIT = "create one with `emuedit remote init s3://bucket/prefix`"
CONFIG, LOCAL_CONFIG = ".dvc/config", ".dvc/config.local"
"""Files with DVC settings of a project; git ignores the second, which replaces single settings of the first."""
_GIT_TIMEOUT_S = 60


def run_dvc(arguments: Sequence[str], root: Path, with_warnings: bool = False) -> str:
    """The output of `dvc ARGUMENTS`, optionally with its warnings.

    Raises RemoteError with DVC's text if it fails, including outside a DVC project.
    """
    environment = {**os.environ, **dvc_state.variables(root), "DVC_NO_ANALYTICS": "true", "COLUMNS": "1000"}
    command = [sys.executable, "-W", "ignore", "-m", "dvc", *arguments]
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)  # noqa: S603 - fixed words
    if process.returncode:
        reason = failure_text(process.stderr.strip() or process.stdout.strip())
        raise RemoteError(f"`dvc {arguments[0]}` failed with status {process.returncode}: {reason}", "DvcFailed")
    return process.stdout + (process.stderr if with_warnings else "")


def failure_text(messages: str) -> str:
    """The reason of a failure in DVC's messages, at most 1500 characters: what follows the warnings and precedes the footer."""
    _, _, errors = messages.partition("ERROR: ")
    return (errors or messages).partition("Having any troubles?")[0].strip()[-1500:]


def run_git(arguments: Sequence[str], root: Path) -> str:
    """The output of `git ARGUMENTS`. Raises RemoteError if it fails, or if it would ask for a password."""
    try:
        return git.run(root, *arguments, timeout_s=_GIT_TIMEOUT_S)
    except GitError as error:
        raise RemoteError(str(error), "GitFailed") from error


def read_settings(root: Path) -> dict[str, str]:
    """All DVC settings in effect for the project at `root`, such as {'core.remote': 's3', 'remote.s3.url': 's3://...'}."""
    lines = run_dvc(["config", "--list"], root).splitlines()
    return dict(line.split("=", maxsplit=1) for line in lines if "=" in line)


def read_location(root: Path) -> tuple[str, RemoteLocation]:
    """Name and location of the default DVC remote. Raises RemoteError if there is none in S3-compatible storage."""
    settings = read_settings(root)
    name = settings.get("core.remote")
    url = settings.get(f"remote.{name}.url")
    if name is None or url is None:
        raise RemoteError(f"want a default DVC remote, got none in {root / '.dvc/config'}; {INIT}", "NoRemote")
    if not url.startswith("s3://"):
        raise RemoteError(f"want a DVC remote in S3-compatible storage, got {name!r} at {url}; {INIT}", "NoRemote")
    remote = {key.removeprefix(f"remote.{name}."): value for key, value in settings.items() if key.startswith(f"remote.{name}.")}
    return name, to_location(remote)


def read_s3_remote() -> dict[str, str] | None:
    """Options of the default remote of the working folder if it is in S3, read without DVC, which takes a second to start."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read([CONFIG, LOCAL_CONFIG])
    name = f'remote "{parser.get("core", "remote", fallback="")}"'  # DVC writes it in quotes, and reads both forms
    sections = [parser[section] for section in parser.sections() if section.strip("'") == name]
    remote = {key: value for section in sections for key, value in section.items()}
    return remote if remote.get("url", "").startswith("s3://") else None


def to_location(remote: Mapping[str, str]) -> RemoteLocation:
    """The location from the options of a DVC remote in S3-compatible storage. Raises RemoteError."""
    place = RemoteLocation.parse(remote["url"], remote.get("endpointurl"), remote.get("region"), remote.get("profile"))
    verify = remote.get("ssl_verify")
    return RemoteLocation(
        place.bucket, place.prefix, place.endpoint, place.region, place.profile,
        remote.get("access_key_id"), remote.get("secret_access_key"), remote.get("session_token"),
        {"false": False, "true": True}.get(verify.lower(), verify) if verify else None,
    )  # fmt: skip


def write_location(root: Path, name: str, location: RemoteLocation, local: bool) -> str | None:
    """Write the remote and make it the default; returns the previous URL of a remote with this name, if it differs.

    local: to .dvc/config.local, which git ignores, instead of .dvc/config. Credentials are never written. Other options of the
    remote in that file stay if its URL and endpoint do. Raises RemoteError, and writes nothing, if DVC would use another store
    than `location` because of options in its other files.
    """
    file, where = (LOCAL_CONFIG, ["--local"]) if local else (CONFIG, [])
    start, options = _options(name, location)
    files = refuse_others(root, name, location, local)
    before = {key: value for settings in files.values() for key, value in settings.items()}.get(f"{start}url")
    present = {key.removeprefix(start): value for key, value in files.get(file, {}).items() if key.startswith(start)}
    if present.get("url") == location.url and present.get("endpointurl") == location.endpoint:
        run_dvc(["remote", "default", *where, name], root)
    else:
        run_dvc(["remote", "add", *where, "--default", "--force", name, location.url], root)
        present = {"url": location.url}
    for option, value in options.items():
        if value != present.get(option):
            change = [name, option, value] if value is not None else ["--unset", name, option]
            run_dvc(["remote", "modify", *where, *change], root)
    return before if before != location.url else None


def _read_files(root: Path) -> dict[str, dict[str, str]]:
    """Each file with DVC settings -> its settings; a later file replaces single settings of the earlier ones."""
    files: dict[str, dict[str, str]] = {}
    for line in run_dvc(["config", "--list", "--show-origin"], root).splitlines():
        file, _, setting = line.partition("\t")
        key, has_value, value = setting.partition("=")
        if has_value:
            files.setdefault(file, {})[key] = value
    return files


def _options(name: str, location: RemoteLocation) -> tuple[str, dict[str, str | None]]:
    """Start of the keys of a remote, as DVC writes its name, and the options of its location."""
    options = {"url": location.url, "endpointurl": location.endpoint, "region": location.region, "profile": location.profile}
    return f"remote.{name.lower()}.", options


def refuse_others(root: Path, name: str, location: RemoteLocation, local: bool) -> dict[str, dict[str, str]]:
    """Raise RemoteError if DVC would use another store than `location` because of options in files that are not written.

    Arguments as of `write_location`. Returns each file with DVC settings and its settings.
    """
    name, written = name.lower(), LOCAL_CONFIG if local else CONFIG
    start, options = _options(name, location)
    new_settings = {"core.remote": name, **{start + option: value for option, value in options.items()}}
    files = _read_files(root)
    for file, settings in files.items():
        if file == LOCAL_CONFIG:
            keys = [key for key, value in new_settings.items() if key in settings and settings[key] != value]
            fix = f"`uv run dvc remote remove --local {name}`"
            if "core.remote" in keys:
                fix = "`uv run dvc config --local --unset core.remote`" + (f" and {fix}" if len(keys) > 1 else "")
            fix = f"remove it there ({fix}), or write to that file (`emuedit remote init --local`)"
        else:
            keys = [key for key, value in new_settings.items() if key in settings and value is None]
            fix = "set it too, or choose another name with `emuedit remote init --name`"
        if keys and file != written:
            got = ", ".join(f"{key}={settings[key]}" for key in keys)
            raise RemoteError(f"want the DVC remote {name!r} to be only what {written} says, got {got} in {file}; {fix}")
    return files


def find_root(start: Path | None = None) -> Path:
    """The root of the DVC project that contains `start` (default: the working folder). Raises RemoteError outside a project."""
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / ".dvc").is_dir():
            return candidate
    raise RemoteError(f"want a folder of a DVC project, got {folder}; run it in the clone of the project")


def is_pushed(root: Path) -> bool:
    """Whether a remote-tracking branch contains the current commit."""
    return bool(run_git(["branch", "--remotes", "--contains", "HEAD"], root).strip())
