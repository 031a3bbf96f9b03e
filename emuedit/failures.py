"""Why something failed, as far as it decides whether to try again: the network, the memory, or anything else.

The kind of an error is read from its class and from those that caused it. Another process hands on a text and a kind, since
errors of libraries do not all survive the way between processes.
"""

import errno
from collections.abc import Iterator
from enum import StrEnum


class FailureKind(StrEnum):
    """Kinds of failure."""

    NETWORK = "network"
    MEMORY = "memory"
    """Out of memory, or killed by SIGKILL, which the kernel sends then."""
    OTHER = "other"
    """Wrong params, wrong data, a fault of the code: the same happens again."""


class ProcessFailedError(RuntimeError):
    """Raised for a failure in another process. `kind` is that of the error there."""

    def __init__(self, message: str, kind: FailureKind = FailureKind.OTHER) -> None:
        super().__init__(message)
        self.kind = kind


_NETWORK_LIBRARIES = ("botocore", "huggingface_hub", "httpx", "openai", "requests", "urllib3")
_MEMORY_PHRASES = ("can't allocate memory", "MPS backend out of memory", "CUDA error: out of memory")
"""In messages of torch, which raises a plain RuntimeError for them: on a CPU, on macOS, and of CUDA beside its allocator."""


def kind_of(error: BaseException) -> FailureKind:
    """The kind of an error: that of the first in its chain of causes which tells one."""
    return next((kind for cause in _chain(error) if (kind := _kind_of_one(cause)) is not None), FailureKind.OTHER)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, what that was raised from, ..."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _kind_of_one(error: BaseException) -> FailureKind | None:
    """The kind that an error tells without its causes; None: it tells none."""
    if isinstance(error, ProcessFailedError):
        return error.kind  # what it was raised from is the lost connection to the process
    if _is_out_of_memory(error):
        return FailureKind.MEMORY
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, ConnectionError | TimeoutError) or library in _NETWORK_LIBRARIES:
        return FailureKind.NETWORK
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return any(phrase in str(error) for phrase in _MEMORY_PHRASES)
