"""Why a stage failed, as far as it decides whether to try again.

A stage says it by its exit status (`emuedit.stages`), which DVC repeats in its output. Wrong params fail again, so they are never
retried; a network may be back in a minute; a stage that ran out of memory gets one more try with half the batch.
"""

import re
import signal

from emuedit.failures import FailureKind
from emuedit.stages import NETWORK_STATUS, OUT_OF_MEMORY_STATUS

_EXIT_STATUS = re.compile(r"exited with (-?\d+)")  # of DVC: "failed to run: python ..., exited with 75"


RETRIES = {FailureKind.NETWORK: 3, FailureKind.MEMORY: 1, FailureKind.OTHER: 0}
"""How often a stage is tried again after a failure of each kind; `meta: {retries: n}` of a stage replaces 0."""
RETRY_DELAYS_S = [10.0, 60.0, 300.0]


def classify(output: str) -> FailureKind:
    """The kind of a failure, from what DVC says of the stage's exit status.

    A SIGKILL of the stage is what the kernel sends when memory runs out. One of DVC or of the guard above it is none of that.
    """
    statuses = [int(number) for number in _EXIT_STATUS.findall(output)]
    if NETWORK_STATUS in statuses:
        return FailureKind.NETWORK
    if {OUT_OF_MEMORY_STATUS, -signal.SIGKILL, 128 + signal.SIGKILL} & set(statuses):
        return FailureKind.MEMORY
    return FailureKind.OTHER
