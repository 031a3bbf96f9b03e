"""`emuedit import` and `emuedit export`: datasets of pairs in the formats of `emuedit/data/formats`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emuedit.data.formats import FOLDER, FORMAT_NAMES

if TYPE_CHECKING:
    from emuedit.data.formats.row_conversion import AssignTasks

_RESUMES = "the same command resumes"


def add_commands(commands: Any) -> None:
    """Add the commands to `emuedit`'s parser."""
    _add_import(commands.add_parser("import", help="convert a public dataset or your own images to pairs"))
    export = commands.add_parser("export", help="write the kept pairs as a dataset to share")
    export.set_defaults(run=_export, stop_note=_RESUMES)
    export.add_argument("out", type=Path, help="new folder for the kept pairs of data/pairs")


def _add_import(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_import, stop_note=_RESUMES)
    command.add_argument("format", help=f"format of the dataset: {', '.join(FORMAT_NAMES)}")
    folder = f"folder with the dataset's Parquet files, at any depth; for {FOLDER}, with edits.csv, or before/ and after/"
    command.add_argument("folder", type=Path, help=folder)
    command.add_argument("out", type=Path, help="new folder for the pairs")
    only = "glob of the files to read, such as 'train-*.parquet'; default: all, of MagicBrush those of the split train"
    command.add_argument("--files", metavar="PATTERN", help=only)
    tasks = command.add_mutually_exclusive_group()
    tasks.add_argument("--task", help="task of all pairs")
    tasks.add_argument(
        "--router", type=Path, metavar="FOLDER", help="task predictor that assigns the tasks, such as models/router"
    )
    wording = f"for {FOLDER} without edits.csv: what was done; several are used in turn"
    command.add_argument("--instruction", action="append", default=[], metavar="TEXT", help=wording)
    sizes = "crop and scale images to this side in pixels, such as the value of train.resolution; default: unchanged"
    command.add_argument("--size", type=int, metavar="PX", help=sizes)


def _import(options: argparse.Namespace) -> None:
    from emuedit.data.example_folder import read_examples
    from emuedit.data.formats import pair_format, pair_import
    from emuedit.data.formats.row_conversion import ImportOptions

    chosen = pair_format.get_format(options.format)
    if options.format == FOLDER and options.files is not None:
        raise pair_format.FormatError(f"want --files for Parquet files only, got it for {FOLDER}; omit it")
    if options.format != FOLDER and options.instruction:
        raise pair_format.FormatError(
            f"want --instruction for {FOLDER} only, got it for {chosen.name}, whose rows have their own; omit it"
        )
    origin, assign_tasks = _task_origin(options.task, options.router)
    import_options = ImportOptions(chosen, options.size, origin, assign_tasks)
    if options.format == FOLDER:
        examples = read_examples(options.folder, options.instruction)
        summary = pair_import.import_examples(import_options, examples, options.out, Path())
    else:
        files = pair_import.find_parquet_files(options.folder, options.files or chosen.files)
        summary = pair_import.import_pairs(import_options, files, options.out, Path())
    if isinstance(assign_tasks, _PredictedTasks) and assign_tasks.n_refused:
        print(f"import: {assign_tasks.describe_refusals()}", flush=True)
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

        return f"by router {read_summary(router).key}", _PredictedTasks(router)
    return "the dataset itself", None


class _PredictedTasks:
    """Assigns the most probable task to each instruction, and counts the texts that the task predictor would refuse.

    These keep their pairs: a pair of a dataset has an instruction, and the predictor also refuses unfamiliar wordings.
    """

    def __init__(self, router: Path) -> None:
        from emuedit.predictor import task_predictor
        from emuedit.runtime import Runtime

        self._predictor = task_predictor.load(str(router), Runtime.choose(dtype="float32").device)
        self.n_texts = self.n_refused = 0
        self._example = ""

    def __call__(self, texts: Sequence[str]) -> list[str]:
        predictions = self._predictor.predict(texts)
        refused = [text for text, prediction in zip(texts, predictions, strict=True) if prediction.refused]
        self._example = self._example or next(iter(refused), "")
        self.n_texts, self.n_refused = self.n_texts + len(texts), self.n_refused + len(refused)
        return [prediction.task for prediction in predictions]

    def describe_refusals(self) -> str:
        """What the user should know about the refused texts."""
        return (
            f"the task predictor refuses {self.n_refused} of {self.n_texts} instructions, such as {self._example!r}; their pairs "
            "have the most probable task; after a resume, only the instructions of this run are counted"
        )


def _export(options: argparse.Namespace) -> None:
    from emuedit.data.formats import pair_export

    print(f"{options.out}: {pair_export.export_pairs(options.out, Path()).counts}")
