"""Which errors explain themselves: those of this project. Any other is shown with its trace."""

import sys
import traceback

from emuedit.tracking.service_errors import hide_password

_OWN = ("emuedit", "flows")


def explains_itself(error: BaseException) -> bool:
    """Whether the class of an error was defined here; its message then says what was wanted, what was found and what to do."""
    return type(error).__module__.split(".")[0] in _OWN


def print_trace(error: BaseException) -> None:
    """Print the trace of an error that is being handled and does not explain itself, without passwords."""
    if not explains_itself(error):
        print(hide_password(traceback.format_exc()), file=sys.stderr)
