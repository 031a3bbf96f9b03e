"""Handling of an unreachable MLflow: short time-outs, one type of error, and one line with the problem and the remedy."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from emuedit.failures import package_of
from emuedit.processes import environment
from emuedit.tracking.store_address import tracking_uri

SERVICE_ENV = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Defaults for commands: with MLflow's own limits, 7 retries and 120 s, a user waits six minutes if the server is down."""
_PROBE_ENV = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
_TRANSFER_ENV = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3600"}
_AWAY_CODES = {
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND",
    "REQUEST_LIMIT_EXCEEDED", "CUSTOMER_UNAUTHORIZED", "BAD_REQUEST", "NOT_IMPLEMENTED", "METHOD_NOT_ALLOWED",
}  # fmt: skip
"""MLflow's error codes for problems of the server, its proxy or its database, not of a run or a version."""
_LIBRARIES = ("requests", "urllib3", "sqlalchemy", "sqlite3", "alembic", "botocore", "boto3")
_REASONS = (
    (
        r"filesystem tracking backend",
        "MLflow no longer stores runs in folders; use a database such as sqlite:///mlflow.db (`mlflow migrate-filestore`)",
    ),
    (r"Databricks credential", "there are no Databricks credentials; run `databricks auth login`"),
    (r"Invalid url", "want a URL such as http://127.0.0.1:5000"),
    (
        r"error code 401|UNAUTHENTICATED",
        "it rejects the credentials (401); set MLFLOW_TRACKING_USERNAME and _PASSWORD, or renew MLFLOW_TRACKING_TOKEN",
    ),
    (r"error code 403|PERMISSION_DENIED", "this account lacks the permission (403); ask for it"),
    (r"error code 404|ENDPOINT_NOT_FOUND", "it has no MLflow API (404); check the URL"),
    (r"not in a valid JSON|invalid literal for int|Expecting value", "the server there is not MLflow; check the URL"),
    (r"too many 429 error|error code 429|REQUEST_LIMIT", "it limits the rate of requests (429); try again later"),
    (r"too many (502|504) error", "the proxy in front of it gets no answer from it (502, 504); it may be overloaded or down"),
    (r"too many (\d+) error", "it fails (500 or above); check its log"),
    (r"error code (\d+)", "it answers with an error; check its log"),
    (r"timed out|Timeout", "it does not answer in time; it may be overloaded"),
    (r"resolve|Name or service|nodename", "there is no such host; check the URL"),
    (r"refused|unreachable|Connection", "no server answers there; start it (`emuedit up`), or unset MLFLOW_TRACKING_URI"),
    (
        r"out-of-date database schema|Can't locate revision",
        "its schema belongs to another MLflow version; upgrade an old one (`mlflow db upgrade <uri>`), or install the newer one",
    ),
    (r"not a database|malformed", "the file is not a database, or is damaged; move it away, and a new one is created"),
    (r"readonly|read-only|Read-only|unable to open|Permission denied", "the file or its folder is not writable"),
    (r"FileNotFoundError|No such file", "the folder of the file cannot be created"),
    (r"disk is full|No space left", "the disk is full"),
    (r"locked", "another process has locked the file"),
    (r"[Uu]nsupported URI|valid tracking URI", "MLFLOW_TRACKING_URI is neither http(s):// nor sqlite:/// nor postgresql://"),
)
"""Pattern in an error of MLflow -> description; the first match counts."""

_MISSING = re.compile(
    r"No such (file|artifact|object)|NoSuch(Key|Bucket)|Not Found|specified \w+ does not exist"
    r"|\b404 (Client Error|GET)|\(404\)|error code 404"  # not any 404, which may be the number of a version
)
"""Texts of errors about files that an artifact store does not have."""

_PASSWORD = re.compile(r"(://[^/:@\s]*):(?!\d+/)[^\s@]*@(?:[^/\s@]*@)*")  # digits and a slash: a port
_PASSWORD_OF_QUERY = re.compile(r"([?&]password=)[^&\s'\"]*")


class ServiceError(RuntimeError):
    """Raised if MLflow is unreachable, rejects the account, or if the server is not MLflow."""


class FullDiskError(ServiceError):
    """Raised if a download does not fit on this machine's disk, or in the quota of the user."""


class LocalError(ValueError):
    """Raised if a file or another service fails, which a ServiceError would call an outage of MLflow."""


def is_away(error: BaseException) -> bool:
    """Whether an error means that MLflow cannot be used now, unlike e.g. a run that does not exist.

    The type decides, so it must be an error of a call of MLflow; `local` converts those of other work.
    """
    if isinstance(error, ServiceError | ConnectionError | TimeoutError | PermissionError):
        return True
    if package_of(error) in _LIBRARIES:
        return True
    is_unsupported = type(error).__name__.startswith("Unsupported")  # URI schemes
    return is_of_mlflow(error) and (is_unsupported or getattr(error, "error_code", "") in _AWAY_CODES)


def means_missing(error: Exception) -> bool:
    """Whether an error of a download means that files do not exist, instead of an outage, refused credentials or a full disk.

    MLflow gives all of them the code INTERNAL_ERROR, and collects the errors of the files of a folder as text, so the text
    decides: only one that names missing files counts. One missing file is enough, whatever happened to the others.
    """
    if isinstance(error, FileNotFoundError) or getattr(getattr(error, "response", None), "status_code", 0) == 404:
        return True
    if getattr(error, "error_code", "") == "INTERNAL_ERROR":
        return is_of_mlflow(error) and _MISSING.search(str(error)) is not None
    return is_of_mlflow(error) and not is_away(error)


def means_full_disk(error: BaseException) -> bool:
    """Whether an error of a download means a full disk or quota here. MLflow collects the errors of files as text."""
    return re.search(r"No space left on device|[Dd]isk quota exceeded", str(error)) is not None


def is_of_mlflow(error: BaseException) -> bool:
    """Whether an error was raised by MLflow."""
    return package_of(error) == "mlflow"


def describe(error: BaseException) -> str:
    """Describe an error in one line: the server, the problem, the remedy."""
    if isinstance(error, ServiceError):
        return str(error)
    text = f"{getattr(error, 'error_code', '')} {error}"
    other = hide_password(f"{type(error).__name__}: {error}")[:200]
    reason = next((words for pattern, words in _REASONS if re.search(pattern, text)), other)
    return " ".join(hide_password(f"MLflow at {tracking_uri().strip()}: {reason}").split())


def hide_password(text: str) -> str:
    """Remove passwords from a URI or a text with URIs, before it is printed, logged or sent."""
    return _PASSWORD_OF_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def one_line(error: BaseException, max_chars: int = 300) -> str:
    """The text of an error on one line, without passwords, cut after `max_chars` characters."""
    return " ".join(hide_password(str(error)).split())[:max_chars]


def shown_uri() -> str:
    """The URI of MLflow for messages, without passwords."""
    return hide_password(tracking_uri())


@contextlib.contextmanager
def converted() -> Iterator[None]:
    """Within the block, convert errors of MLflow itself to ServiceError; others are unchanged."""
    try:
        yield
    except Exception as error:  # from MLflow, its HTTP library or its database
        if is_away(error) and not isinstance(error, ServiceError):
            raise ServiceError(describe(error)) from error
        raise


@contextlib.contextmanager
def local(work: str) -> Iterator[None]:
    """Within the block, which does not call MLflow, convert what `converted` would call an outage of MLflow to LocalError.

    work: what the block does, such as `measured editors`, for the message, which names the file.
    """
    try:
        yield
    except Exception as error:  # of files, or of another service, by the same libraries as MLflow's
        if isinstance(error, ServiceError) or is_of_mlflow(error) or not is_away(error):
            raise
        filename = getattr(error, "filename", None)
        if filename is None:
            problem = f"{type(error).__name__}: {one_line(error)}"
            raise LocalError(f"want {work}, got {problem}; solve this and try again") from error
        raise LocalError(
            f"want {work}, got {getattr(error, 'strerror', '')}: {filename}; correct this file or folder, or its permissions"
        ) from error


def check() -> None:
    """Query MLflow, within four seconds. Raises ServiceError with the problem and the remedy."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = tracking_uri()
    with _limited_by(_PROBE_ENV), converted():
        try:
            client: Any = MlflowClient(tracking_uri=uri)
            experiments = client.search_experiments(max_results=1)
        except (OSError, MlflowException) as error:  # also for the folder of a database file, and removed kinds of stores
            raise ServiceError(describe(error)) from error
        if experiments or not uri.startswith("http"):
            return
        try:
            answers_anything = not client.get_experiment("0").experiment_id  # this one always exists in MLflow
        except MlflowException:  # an account without access to experiments
            return
        if answers_anything:
            raise ServiceError(f"MLflow at {shown_uri()}: the server there is not MLflow; check the URL")


@contextlib.contextmanager
def transferring() -> Iterator[None]:
    """Within the block, allow long requests of MLflow, for files of several GB.

    A server with artifacts in S3 answers an upload only after it has forwarded the whole file, and a download only after it has
    fetched it: with 10 s, the upload of a U-Net of 1.7 GB would fail after three attempts.
    """
    with _limited_by(_TRANSFER_ENV):
        yield


@contextlib.contextmanager
def _limited_by(limits: Mapping[str, str]) -> Iterator[None]:
    """Within the block, apply these limits, except those that the user has set."""
    values = {key: value for key, value in limits.items() if os.environ.get(key) in (None, SERVICE_ENV[key])}
    with environment(values):
        yield
