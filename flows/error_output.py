"""Print project errors without a traceback, since their messages are self-explanatory; print others with one."""

import sys
import traceback

from emuedit.failures import explains_itself
from emuedit.tracking.service_errors import hide_password


def print_trace(error: BaseException) -> None:
    """Print the traceback of the error being handled, without passwords, unless it explains itself."""
    if not explains_itself(error):
        print(hide_password(traceback.format_exc()), file=sys.stderr)
