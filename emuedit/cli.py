"""The command `emuedit`: edits, datasets, registry, data remote, servers. Each group of commands is defined in its own module."""

import argparse
import errno
import io
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from emuedit import failures
from emuedit.editing import edit_commands, learn_command, task_commands
from emuedit.failures import FailureKind
from emuedit.name_hints import check_options
from emuedit.operations import ledger_commands, server_commands
from emuedit.operations.storage import remote_commands
from emuedit.processes import QUIET_ENV, keep_compiled_modules, run_and_exit, set_env_defaults
from emuedit.promotion import promotion_commands
from emuedit.tracking import service_errors, store_address, sync_command
from emuedit.worlds import benchmark_command, dataset_commands, init_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 failed or not healthy, 2 invalid input, 130 after ctrl-c, 141 if nobody reads."""
    set_env_defaults(QUIET_ENV | service_errors.SERVICE_ENV)
    keep_compiled_modules()
    words = sys.argv[1:] if arguments is None else list(arguments)
    stop_note = ""
    try:
        check_options(words)
        options = _parser().parse_args(words)
        stop_note = options.stop_note
        if (options.uses_registry or options.needs_registry) and (note := store_address.use_server()):
            print(note, file=sys.stderr)
        if options.needs_registry:
            service_errors.check()
        return int(options.run(options) or 0)
    except BrokenPipeError:  # of our output, such as to `head`; the clients of servers raise errors of their own
        return 141
    except (ValueError, FileNotFoundError, service_errors.ServiceError) as error:
        print(f"emuedit: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # handle only errors of MLflow, the disk, this project and the network
        if (line := _describe(error)) is None:
            raise
        print(f"emuedit: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("; ".join(filter(None, ("emuedit: stopped", stop_note))), file=sys.stderr)
        return 130


def _describe(error: Exception) -> str | None:
    """One line for an error that needs no traceback; None for others."""
    if service_errors.is_of_mlflow(error):  # its server may stop at any time
        return service_errors.describe(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # of standard output, or a file that a library writes
        return f"{error.strerror}; free some space, or write elsewhere"
    if failures.explains_itself(error):
        return str(error)
    if failures.kind_of(error) is FailureKind.NETWORK:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        return f"{first_line}; a server did not answer: run the command again when it does"
    return None


def console_main() -> NoReturn:
    """The command `emuedit`: run `main` and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may contain bytes that the terminal cannot show
    run_and_exit(main)


class _CommandParser(argparse.ArgumentParser):
    """The parser of the program, and of each of its commands. Options have only their full names."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)


def _parser() -> argparse.ArgumentParser:
    """The parser. A command sets `run` and, if they are true of it, these defaults:

    uses_registry: it uses MLflow, and names which one if `emuedit up` was called in the working folder. needs_registry: it does
    nothing if MLflow cannot be used, which implies the other. stop_note: what ctrl-c leaves, and what to do.
    """
    parser = _CommandParser(prog="emuedit", description="An open Emu Edit: edit images by instruction.")
    parser.set_defaults(uses_registry=False, needs_registry=False, stop_note="")
    commands: Any = parser.add_subparsers(required=True, metavar="command")
    init_command.add_commands(commands)
    edit_commands.add_commands(commands)
    task_commands.add_commands(commands)
    learn_command.add_commands(commands)
    dataset_commands.add_commands(commands)
    benchmark_command.add_commands(commands)
    promotion_commands.add_commands(commands)
    server_commands.add_commands(commands)
    remote_commands.add_commands(commands)
    sync_command.add_commands(commands)
    ledger_commands.add_commands(commands)
    return parser
