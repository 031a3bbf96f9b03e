"""The command `emuedit`, also as `python -m emuedit`. It is imported here, so that ctrl-c at any time needs no traceback."""

import sys
from typing import NoReturn

from emuedit.processes import exit_process, open_missing_streams


def main() -> NoReturn:
    """Run the command and exit; status 130 after ctrl-c."""
    open_missing_streams()
    try:
        from emuedit.cli import console_main

        console_main()
    except KeyboardInterrupt:  # during the import or the exit; `console_main` handles those of a command
        print("emuedit: stopped", file=sys.stderr)
        exit_process(130)


if __name__ == "__main__":
    main()
