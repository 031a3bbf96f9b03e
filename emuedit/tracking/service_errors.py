"""What to do when MLflow is away: short time-outs, one type of error, and one line that says what is wrong and what to do."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from emuedit.tracking.stats import tracking_uri

SERVICE_ENV = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""For programs: MLflow's own limits, 7 retries and 120 s, keep a user waiting for six minutes when the server is down."""
_PROBE_ENV = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
_TRANSFER_ENV = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3600"}
_AWAY_CODES = {
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND",
    "REQUEST_LIMIT_EXCEEDED", "CUSTOMER_UNAUTHORIZED", "BAD_REQUEST", "NOT_IMPLEMENTED", "METHOD_NOT_ALLOWED",
}  # fmt: skip
"""Codes of MLflow's errors that tell of the server, its proxy or its database, not of a run or a version."""
_LIBRARIES = ("requests", "urllib3", "sqlalchemy", "sqlite3", "alembic", "botocore", "boto3")
_REASONS = (
    (
        r"filesystem tracking backend",
        "MLflow keeps no runs in folders any more; name a database such as sqlite:///mlflow.db (`mlflow migrate-filestore`)",
    ),
    (r"Databricks credential", "there are no credentials of Databricks; `databricks auth login` makes them"),
    (r"Invalid url", "want an address such as http://127.0.0.1:5000"),
    (r"error code 401|UNAUTHENTICATED", "it refuses the credentials (401); set MLFLOW_TRACKING_USERNAME and _PASSWORD"),
    (r"error code 403|PERMISSION_DENIED", "this account may not do that (403); ask for the permission"),
    (r"error code 404|ENDPOINT_NOT_FOUND", "it has no MLflow API (404); is the address right?"),
    (r"not in a valid JSON|invalid literal for int|Expecting value", "what answers there is not MLflow; is the address right?"),
    (r"too many (\d+) error", "it fails (500 or above); see its log"),
    (r"error code (\d+)", "it answers with an error; see its log"),
    (r"timed out|Timeout", "it does not answer in time; is it overloaded?"),
    (r"resolve|Name or service|nodename", "there is no such host; is the address right?"),
    (r"refused|unreachable|Connection", "nothing answers there; start it (`emuedit up`), or unset MLFLOW_TRACKING_URI"),
    (
        r"out-of-date database schema|Can't locate revision",
        "its tables are of another MLflow; upgrade those of an older one (`mlflow db upgrade <uri>`), or install the newer one",
    ),
    (r"not a database|malformed", "the file is no database, or is damaged; move it away and a new one is made"),
    (r"readonly|read-only|Read-only|unable to open|Permission denied", "the file or its folder cannot be written"),
    (r"FileNotFoundError|No such file", "the folder of the file cannot be made"),
    (r"disk is full|No space left", "the disk is full"),
    (r"locked", "another process has locked the file"),
    (r"[Uu]nsupported URI|valid tracking URI", "MLFLOW_TRACKING_URI is neither http(s):// nor sqlite:/// nor postgresql://"),
)
"""Pattern in an error of MLflow -> what is wrong in words; the first that fits counts."""

_PASSWORD = re.compile(r"(://[^/:@\s]*):(?!\d+/)[^\s@]*@(?:[^/\s@]*@)*")  # digits and a slash: a port
_PASSWORD_OF_QUERY = re.compile(r"([?&]password=)[^&\s'\"]*")


class ServiceError(RuntimeError):
    """Raised when MLflow is away, refuses the account, or answers with what is not MLflow's."""


def is_away(error: BaseException) -> bool:
    """Whether an error tells that MLflow cannot be used now, as opposed to a run or a version that does not exist."""
    if isinstance(error, ServiceError | ConnectionError | TimeoutError | PermissionError):
        return True
    if type(error).__module__.partition(".")[0] in _LIBRARIES:
        return True
    is_unsupported = type(error).__name__.startswith("Unsupported")  # URI schemes
    return is_of_mlflow(error) and (is_unsupported or getattr(error, "error_code", "") in _AWAY_CODES)


def is_of_mlflow(error: BaseException) -> bool:
    """Whether MLflow raised an error."""
    return type(error).__module__.partition(".")[0] == "mlflow"


def describe(error: BaseException) -> str:
    """One line: which server, what is wrong with it, what to do."""
    if isinstance(error, ServiceError):
        return str(error)
    text = f"{getattr(error, 'error_code', '')} {error}"
    other = hide_password(f"{type(error).__name__}: {error}")[:200]
    reason = next((words for pattern, words in _REASONS if re.search(pattern, text)), other)
    return " ".join(hide_password(f"MLflow at {tracking_uri().strip()}: {reason}").split())


def hide_password(text: str) -> str:
    """A URI, or a text with URIs, without passwords: for all that is printed, logged or sent on."""
    return _PASSWORD_OF_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def shown_uri() -> str:
    """Where MLflow is, for messages."""
    return hide_password(tracking_uri())


@contextlib.contextmanager
def converted() -> Iterator[None]:
    """Within the block, errors that tell of MLflow itself become ServiceError; others stay."""
    try:
        yield
    except Exception as error:  # of MLflow, of its HTTP library, of its database
        if is_away(error) and not isinstance(error, ServiceError):
            raise ServiceError(describe(error)) from error
        raise


def check() -> None:
    """Ask MLflow for something, in four seconds. Raises ServiceError, which says what is wrong and what to do."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = tracking_uri()
    with _limited_by(_PROBE_ENV), converted():
        try:
            client: Any = MlflowClient(tracking_uri=uri)
            experiments = client.search_experiments(max_results=1)
        except (OSError, MlflowException) as error:  # also the folder of a database file, and kinds of stores that are no more
            raise ServiceError(describe(error)) from error
        if experiments or not uri.startswith("http"):
            return
        try:
            answers_anything = not client.get_experiment("0").experiment_id  # MLflow always has this one
        except MlflowException:  # an account that may see no experiment
            return
        if answers_anything:
            raise ServiceError(f"MLflow at {shown_uri()}: what answers there is not MLflow; is the address right?")


@contextlib.contextmanager
def transferring() -> Iterator[None]:
    """Within the block, requests of MLflow may take as long as files of several GB do.

    A server that keeps artifacts in S3 answers an upload only when it has passed the whole file on, and a download only when it
    has fetched it: at 10 s a U-Net of 1.7 GB would be sent three times and given up.
    """
    with _limited_by(_TRANSFER_ENV):
        yield


@contextlib.contextmanager
def _limited_by(limits: Mapping[str, str]) -> Iterator[None]:
    """Within the block, these limits are in force; those that the user chose stay."""
    values = {key: value for key, value in limits.items() if os.environ.get(key) in (None, SERVICE_ENV[key])}
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
