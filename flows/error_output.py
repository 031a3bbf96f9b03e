"""Print project errors without a traceback, since their messages are self-explanatory; print others with one."""

import sys
import traceback

from emuedit.failures import package_of
from emuedit.tracking.service_errors import hide_password

_OWN = ("emuedit", "flows")


def explains_itself(error: BaseException) -> bool:
    """Whether the error's class is defined in this project, so that its message explains the problem and the remedy."""
    return package_of(error) in _OWN


def print_trace(error: BaseException) -> None:
    """Print the traceback of the error being handled, without passwords, unless it explains itself."""
    if not explains_itself(error):
        print(hide_password(traceback.format_exc()), file=sys.stderr)
