"""Classify failures for retries: network, memory, or other.

The kind follows from the class of an error and of its causes. Other processes send a text and a kind, since some errors of
libraries cannot be pickled.
"""

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from enum import StrEnum
from http import HTTPStatus
from http.client import BadStatusLine, IncompleteRead
from urllib.error import HTTPError


class FailureKind(StrEnum):
    """Kinds of failure."""

    NETWORK = "network"
    MEMORY = "memory"
    """Out of memory, or killed by SIGKILL (sent by the kernel's OOM killer)."""
    OTHER = "other"
    """Wrong params, wrong data, a bug: a retry would fail in the same way."""


class ProcessFailedError(RuntimeError):
    """Raised for a failure in another process. `kind` is the kind of the original error."""

    def __init__(self, message: str, kind: FailureKind = FailureKind.OTHER) -> None:
        super().__init__(message)
        self.kind = kind


_PACKAGES = ("emuedit", "flows", "toyworld")
_NETWORK_LIBRARIES = ("botocore", "huggingface_hub", "httpx", "httpx2", "openai", "requests", "urllib3")
_NETWORK_ERRORS = (ConnectionError, TimeoutError, BadStatusLine, IncompleteRead)
_NETWORK_ERRNO = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH)
_OFFLINE_ENV = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables of huggingface_hub; the first one that is set is used."""
_PERMANENT = {
    "EntryNotFoundError", "GatedRepoError", "HFValidationError", "OfflineModeIsEnabled", "RepositoryNotFoundError",
    "RevisionNotFoundError",
}  # fmt: skip
"""Permanent errors of huggingface_hub: wrong name, missing permission, offline mode."""
_TRANSIENT_STATUS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)  # transient ones below 500
_MEMORY_PHRASES = (
    "can't allocate memory", "MPS backend out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip
"""Messages of torch's plain RuntimeErrors: on a CPU, on macOS, and of CUDA and its libraries outside torch's allocator."""


def package_of(error: BaseException) -> str:
    """Top-level package that defines the class of an error."""
    return type(error).__module__.partition(".")[0]


def explains_itself(error: BaseException) -> bool:
    """Whether the class of an error is defined in this project, so that its message says what is wrong and what to do."""
    return package_of(error) in _PACKAGES


def kind_of(error: BaseException) -> FailureKind:
    """The kind of an error: the kind of the first error in its chain of causes that can be classified.

    HTTP status 408, 429, 500 or above: network. Any other status of 400 or above is permanent, as is a hub id that does not
    exist, is gated, or is not cached while HF_HUB_OFFLINE is set.
    """
    kinds = [kind for cause in chain_of(error) if (kind := _kind_of_one(cause)) is not None]
    if kinds:
        return kinds[0]
    is_missing_here = any("LocalEntryNotFoundError" in class_names(cause) for cause in chain_of(error))
    return FailureKind.NETWORK if is_missing_here and not _is_offline() else FailureKind.OTHER


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error and its chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _kind_of_one(error: BaseException) -> FailureKind | None:
    """The kind of an error without its causes; None: unknown."""
    if isinstance(error, ProcessFailedError):
        return error.kind  # its cause is only the lost connection to the process
    if _is_out_of_memory(error):
        return FailureKind.MEMORY
    names = class_names(error)
    if "LocalEntryNotFoundError" in names:  # its cause says why the download failed
        return None
    if names & _PERMANENT:
        return FailureKind.OTHER
    if (status := _http_status(error)) is not None:
        is_transient = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRANSIENT_STATUS
        return FailureKind.NETWORK if is_transient else FailureKind.OTHER
    if isinstance(error, _NETWORK_ERRORS) or package_of(error) in _NETWORK_LIBRARIES:
        return FailureKind.NETWORK
    if isinstance(error, socket.gaierror):
        return FailureKind.NETWORK if error.errno == socket.EAI_AGAIN else None  # the name server did not answer
    return FailureKind.NETWORK if isinstance(error, OSError) and error.errno in _NETWORK_ERRNO else None


def class_names(error: BaseException) -> set[str]:
    """Names of the classes of an error, so that the libraries that define them need not be imported."""
    return {parent.__name__ for parent in type(error).__mro__}


def _http_status(error: BaseException) -> int | None:
    """HTTP status of 400 or above in an error of urllib, botocore or another library; or None."""
    response = getattr(error, "response", None)
    status: object = getattr(response, "status_code", None)
    if isinstance(error, HTTPError):
        status = error.code
    elif isinstance(response, Mapping):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) and status >= HTTPStatus.BAD_REQUEST else None


def _is_offline() -> bool:
    """Whether huggingface_hub is in offline mode."""
    values = [value for name in _OFFLINE_ENV if (value := os.environ.get(name))]
    return bool(values) and values[0].upper() in ("1", "ON", "YES", "TRUE")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return any(phrase in str(error) for phrase in _MEMORY_PHRASES)
