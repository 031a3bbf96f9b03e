"""Check whether Prefect can be used: its home folder, its settings, and the server at PREFECT_API_URL.

Nothing of Prefect is imported before `import_settings`, so that the other checks take only seconds.
"""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from emuedit.data.writable_folder import make_private_temporary, why_not_writable
from emuedit.operations.servers.http_probe import ask
from emuedit.operations.servers.server_stack import ACCOUNT_ADVICE, AUTH_ENV
from emuedit.tracking.service_errors import hide_password

_ANSWER_S = 5.0
_HOME_ENV, _URL_ENV = "PREFECT_HOME", "PREFECT_API_URL"
_ACCOUNT_ENV = ("PREFECT_API_KEY", AUTH_ENV)
_SETTINGS_FILES = (".env", "prefect.toml", "pyproject.toml")
"""Files of the working folder from which Prefect reads settings."""
_WITHOUT = f"unset {_URL_ENV} (or `prefect config unset {_URL_ENV}`) and a retrain starts a local server"


class ServerError(RuntimeError):
    """Raised if a Prefect server does not answer or start, or if its home folder or settings cannot be used."""


def check() -> None:
    """Raise ServerError if PREFECT_HOME or PREFECT_API_URL of the environment cannot be used.

    If the home folder is not writable and PREFECT_HOME is not set, it is set to a temporary folder of this user.
    """
    home = os.environ.get(_HOME_ENV)
    if problem := why_not_writable(Path(home).expanduser() if home else Path.home() / ".prefect"):
        if home:
            raise ServerError(f"want a folder that Prefect can write as {_HOME_ENV}, got {problem}; name another or unset it")
        os.environ[_HOME_ENV] = str(make_private_temporary(f"emuedit-prefect-{os.getuid()}"))
        print(f"== ~/.prefect is not writable ({problem}); using {os.environ[_HOME_ENV]}", flush=True)
    if url := os.environ.get(_URL_ENV):
        check_url(url)


def check_url(url: str) -> None:
    """Raise ServerError, within five seconds, unless a Prefect API answers at a URL."""
    address = hide_password(url)
    try:
        answer = ask(f"{url.rstrip('/')}/health", _ANSWER_S)
    except ValueError as error:
        raise ServerError(f"want {_URL_ENV} such as http://127.0.0.1:4200/api, got {address!r}; {_WITHOUT}") from error
    if answer.status in (401, 403) and not any(os.environ.get(name) for name in _ACCOUNT_ENV):
        raise ServerError(_want_account(address, answer.status))
    if answer.location and 300 <= answer.status < 400:
        address_of_api = hide_password(answer.location.removesuffix("/health"))
        raise ServerError(f"the server at {address} redirects to {address_of_api}; set {_URL_ENV} to that address, or {_WITHOUT}")
    if answer.status == 0:
        raise ServerError(f"no Prefect server answers at {address} ({answer.error}); start it (`emuedit up`), or {_WITHOUT}")
    is_own_server = not (urlsplit(url).hostname or "").endswith("prefect.cloud")
    if answer.status >= 500:
        raise ServerError(f"the Prefect server at {address} fails ({answer.status}); check its log, or {_WITHOUT}")
    if is_own_server and answer.status not in (401, 403) and not (answer.is_success and answer.body.strip() == b"true"):
        raise ServerError(f"the server at {address} is not Prefect's API; use a URL that ends in /api, or {_WITHOUT}")


def check_account(url: str, account: str) -> None:
    """Raise ServerError if the API at a URL refuses `account`, `name:password`, or requires one and it is empty.

    A server of Prefect answers /health to everyone.
    """
    status = ask(f"{url.rstrip('/')}/admin/version", _ANSWER_S, account=account).status
    if status in (401, 403):
        raise ServerError(_want_account(hide_password(url), status, has_account=bool(account)))


def _want_account(address: str, status: int, has_account: bool = False) -> str:
    problem = f"refuses the credentials of {AUTH_ENV}" if has_account else "requires credentials"
    return f"the server at {address} {problem} ({status}); {ACCOUNT_ADVICE}"


def import_settings() -> None:
    """Import Prefect, which reads its settings. Raises ServerError that names the place of an invalid setting."""
    try:
        import prefect.main  # noqa: F401
    except ValidationError as error:
        first = error.errors()[0]
        setting, value = ".".join(map(str, first["loc"])), first["input"]
        places = [name for name in os.environ if name.startswith("PREFECT_") and os.environ[name] == str(value)]
        where = " or ".join(places) or ", ".join((*_SETTINGS_FILES, "the active profile"))
        raise ServerError(f"Prefect cannot use its setting {setting}: {first['msg']}, got {value!r}; check {where}") from error
    except ValueError as error:  # from the TOML parser, the decoder or the settings library
        files = " or ".join(_broken_files()) or "its settings files"
        raise ServerError(f"Prefect cannot read {files}: {error}; correct the file or move it away") from error


def _broken_files() -> Iterator[str]:
    """Settings files of Prefect that are not valid TOML."""
    home = Path(os.environ.get(_HOME_ENV) or Path.home() / ".prefect").expanduser()
    for file in (Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml"), *map(Path, _SETTINGS_FILES[1:])):
        try:
            tomllib.loads(file.read_text(encoding="utf-8") if file.is_file() else "")
        except ValueError:
            yield str(file)
