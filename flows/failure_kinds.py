"""Classify failures of a stage to decide whether to retry.

The kind is read from the exit status (`emuedit.stages`) that DVC prints. Network failures are retried after a delay, out of
memory once with half the batch; other failures would recur.
"""

import re
import signal

from emuedit.failures import FailureKind
from emuedit.stages import NETWORK_STATUS, OUT_OF_MEMORY_STATUS

_EXIT_STATUS = re.compile(r"exited with (-?\d+)")  # DVC's output: "failed to run: python ..., exited with 75"


RETRIES = {FailureKind.NETWORK: 3, FailureKind.MEMORY: 1, FailureKind.OTHER: 0}
"""Retries of a stage after a failure of each kind; `meta: {retries: n}` of a stage replaces 0."""
RETRY_DELAYS_S = [10.0, 60.0, 300.0]


def max_retries(kind: FailureKind, extra_retries: int) -> int:
    """Number of retries of a stage with `meta: {retries: <extra_retries>}` after failures of one kind."""
    return extra_retries if kind is FailureKind.OTHER else RETRIES[kind]


def classify(output: str) -> FailureKind:
    """The kind of a failure, from the exit status in DVC's output.

    SIGKILL of the stage counts as out of memory (the OOM killer); SIGKILL of DVC or of the guard does not.
    """
    statuses = [int(number) for number in _EXIT_STATUS.findall(output)]
    if NETWORK_STATUS in statuses:
        return FailureKind.NETWORK
    if {OUT_OF_MEMORY_STATUS, -signal.SIGKILL, 128 + signal.SIGKILL} & set(statuses):
        return FailureKind.MEMORY
    return FailureKind.OTHER
