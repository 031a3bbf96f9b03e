"""The command `emuedit`: edits, datasets, registry, data remote, servers. Each group of commands is defined in its own module."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from emuedit.data.formats import FOLDER, FORMAT_NAMES
from emuedit.editing import edit_commands, learn_command, task_commands
from emuedit.name_hints import check_options
from emuedit.operations import ledger_commands, remote_commands, server_commands
from emuedit.processes import QUIET_ENV, exit_process, keep_compiled_modules, set_env_defaults
from emuedit.promotion import promotion_commands
from emuedit.tracking import service_errors, store_address, sync_command
from emuedit.worlds import benchmark_command, init_command

if TYPE_CHECKING:
    from emuedit.data.formats.row_conversion import AssignTasks


_REGISTRY_COMMANDS = {module.__name__ for module in (promotion_commands, ledger_commands, sync_command)}
"""They name the MLflow that they use, if `emuedit up` was called in the working folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 failed or not healthy, 2 invalid input, 130 after ctrl-c."""
    set_env_defaults(QUIET_ENV | service_errors.SERVICE_ENV)
    keep_compiled_modules()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        check_options(words)
        options = _parser().parse_args(words)
        if options.run.__module__ in _REGISTRY_COMMANDS and (note := store_address.use_server()):
            print(note, file=sys.stderr)
        if options.run.__module__ == promotion_commands.__name__:
            service_errors.check()
        return int(options.run(options) or 0)
    except (ValueError, FileNotFoundError, service_errors.ServiceError) as error:
        print(f"emuedit: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # handle only errors of MLflow, whose server may stop at any time, and of the disk
        if service_errors.is_of_mlflow(error):
            print(f"emuedit: {service_errors.describe(error)}", file=sys.stderr)
        elif isinstance(error, OSError) and error.filename is not None:
            print(f"emuedit: {error.filename}: {error.strerror}", file=sys.stderr)
        else:
            raise
        return 1
    except KeyboardInterrupt:
        print("emuedit: stopped; nothing was written that is not listed above", file=sys.stderr)
        return 130


def console_main() -> NoReturn:
    """The command `emuedit`: run `main` and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may contain bytes that the terminal cannot show
    exit_process(main())


def _import(options: argparse.Namespace) -> None:
    from emuedit.data.example_folder import read_examples
    from emuedit.data.formats import pair_format, pair_import
    from emuedit.data.formats.row_conversion import ImportOptions

    origin, assign_tasks = _task_origin(options.task, options.router)
    import_options = ImportOptions(pair_format.get_format(options.format), options.size, origin, assign_tasks)
    if options.format == FOLDER:
        examples = read_examples(options.folder, options.instruction)
        summary = pair_import.import_examples(import_options, examples, options.out, Path())
    else:
        files = pair_import.find_parquet_files(options.folder, options.files)
        summary = pair_import.import_pairs(import_options, files, options.out, Path())
    print(f"{options.out}: {summary.counts}")


def _task_origin(task: str | None, router: Path | None) -> "tuple[str, AssignTasks | None]":
    """How imported pairs get their tasks: a description and a function; None when the dataset itself names the tasks.

    Raises ValueError for a task that no editor is trained on.
    """
    if task:
        from emuedit.tasks import get_task

        if get_task(task).index is None:
            raise ValueError(f"want a task that editors are trained on, got {task}, which is for inversion; name another --task")
        return f"all {task}", lambda texts: [task] * len(texts)
    if router:
        from emuedit.data.publish import read_summary
        from emuedit.predictor import task_predictor
        from emuedit.runtime import Runtime

        predictor = task_predictor.load(str(router), Runtime.choose(dtype="float32").device)
        return f"by router {read_summary(router).key}", lambda texts: [found.task for found in predictor.predict(texts)]
    return "the dataset itself", None


def _export(options: argparse.Namespace) -> None:
    from emuedit.data.formats import pair_export

    print(f"{options.out}: {pair_export.export_pairs(options.out, Path()).counts}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emuedit", description="An open Emu Edit: edit images by instruction.")
    commands = parser.add_subparsers(required=True, metavar="command")
    init_command.add_commands(commands)
    edit_commands.add_commands(commands)
    task_commands.add_commands(commands)
    learn_command.add_commands(commands)
    _add_import(commands.add_parser("import", help="convert a public dataset or your own images to pairs", allow_abbrev=False))
    export = commands.add_parser("export", help="write the kept pairs as a dataset to share", allow_abbrev=False)
    export.set_defaults(run=_export)
    export.add_argument("out", type=Path, help="new folder for the kept pairs of data/pairs")
    benchmark_command.add_commands(commands)
    promotion_commands.add_commands(commands)
    server_commands.add_commands(commands)
    remote_commands.add_commands(commands)
    sync_command.add_commands(commands)
    ledger_commands.add_commands(commands)
    return parser


def _add_import(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_import)
    command.add_argument("format", help=f"format of the dataset: {', '.join(FORMAT_NAMES)}")
    folder = f"folder with the dataset's Parquet files, at any depth; for {FOLDER}, with edits.csv, or before/ and after/"
    command.add_argument("folder", type=Path, help=folder)
    command.add_argument("out", type=Path, help="new folder for the pairs")
    only = "glob of the files to read, such as 'train-*.parquet'; default: all"
    command.add_argument("--files", default="*.parquet", metavar="PATTERN", help=only)
    tasks = command.add_mutually_exclusive_group()
    tasks.add_argument("--task", help="task of all pairs")
    tasks.add_argument(
        "--router", type=Path, metavar="FOLDER", help="task predictor that assigns the tasks, such as models/router"
    )
    wording = f"for {FOLDER} without edits.csv: what was done; several are used in turn"
    command.add_argument("--instruction", action="append", default=[], metavar="TEXT", help=wording)
    sizes = "crop and scale images to this side in pixels, such as the value of train.resolution; default: unchanged"
    command.add_argument("--size", type=int, metavar="PX", help=sizes)
