"""The command line: `emuedit edit in.png "make the circle red" -o out.png`, and import and export of pair datasets."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emuedit.data import image_io
from emuedit.data.formats import FORMAT_NAMES
from emuedit.editor import touched_area
from emuedit.editor.package import Editor, Turn
from emuedit.editor.package_folder import CHAMPION, resolve_source
from emuedit.editor.package_layout import EDITOR, MODELS
from emuedit.editor.settings import EditSettings
from emuedit.name_hints import check_options
from emuedit.operations import remote_commands, server_commands
from emuedit.progress import Progress, waiting
from emuedit.promotion import promotion_commands
from emuedit.runtime import set_env_defaults

if TYPE_CHECKING:
    from emuedit.data.formats.row_conversion import AssignTasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 failed or not healthy, 2 for input that is refused, 130 after ctrl-c."""
    set_env_defaults()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        check_options(words)
        options = _parser().parse_args(words)
        return int(options.run(options) or 0)
    except (ValueError, FileNotFoundError) as error:
        print(f"emuedit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("emuedit: stopped; nothing was written that is not listed above", file=sys.stderr)
        return 130


def _edit(options: argparse.Namespace) -> None:
    out = options.out or options.image.with_name(f"{options.image.stem}-edited.png")
    _check_out(out, options.image, options.overwrite)
    if options.mask:
        _check_out(options.mask, options.image, overwrite=False)
    picture = image_io.read_image(options.image)
    for note in picture.notes:
        print(f"{options.image}: {note}")
    with waiting("loading the editor"):
        folder, name = resolve_source(options.model)
        editor = Editor.load(folder)
    changes = {setting: getattr(options, setting) for setting in EditSettings.model_fields}
    settings = editor.settings.with_changes({setting: value for setting, value in changes.items() if value is not None})
    tasks = [options.task] * len(options.instructions) if options.task else None
    with Progress("editing", len(options.instructions) * settings.steps, "step") as progress:
        turns = editor.edit_turns(picture.pixels, options.instructions, tasks, settings, progress.advance)
    for number, turn in enumerate(turns, start=1):
        path = out.with_name(f"{out.stem}-{number}{out.suffix}") if options.keep_turns else None
        if path:
            image_io.write_image(path, turn.pixels, picture)
        print(_describe(turn) + (f" -> {path}" if path else ""))
    edited = turns[-1].pixels
    image_io.write_image(out, edited, picture)
    height, width = edited.shape[:2]
    print(f"{out}: {width} x {height}, {touched_area.measure(picture.pixels, edited)}")
    print(f"{progress.seconds:.1f} s, {settings.steps} steps, {name}")
    if options.mask:
        mask = touched_area.touched_mask(picture.pixels, edited)
        image_io.write_image(options.mask, np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1))
        print(f"{options.mask}: white where pixels changed")


def _check_out(out: Path, image: Path, overwrite: bool) -> None:
    """Raise ImageError for an output that cannot be written, before anything is computed."""
    if out.exists() and out.samefile(image) and not overwrite:
        raise image_io.ImageError(f"{out} is the picture itself; name another file with -o, or say --overwrite")
    if out.is_dir():
        raise image_io.ImageError(f"want an output file, got the folder {out}; name a file in it, such as {out / 'out.png'}")
    if not out.parent.is_dir():
        raise image_io.ImageError(f"want a folder to write to, got none at {out.parent}")
    if out.suffix.lower() not in image_io.WRITABLE_SUFFIXES:
        raise image_io.ImageError(f"want an output file such as out.png or out.jpg, got {out}")


def _describe(turn: Turn) -> str:
    choice = turn.choice
    if choice.probability is None:
        return f'"{turn.instruction}": {choice.task}, as given'
    if choice.second is None:
        return f'"{turn.instruction}": {choice.task} ({choice.probability:.0%})'
    readings = f"{choice.task} ({choice.probability:.0%}) or {choice.second} ({choice.second_probability:.0%})"
    return f'"{turn.instruction}": {readings}; {choice.task} was done, --task {choice.second} chooses the other'


def _import(options: argparse.Namespace) -> None:
    from emuedit.data.formats import pair_format, pair_import
    from emuedit.data.formats.row_conversion import ImportOptions

    origin, assign_tasks = _task_origin(options.task, options.router)
    import_options = ImportOptions(pair_format.get_format(options.format), options.size, origin, assign_tasks)
    files = pair_import.find_parquet_files(options.folder, options.files)
    summary = pair_import.import_pairs(import_options, files, options.out, Path())
    print(f"{options.out}: {summary.counts}")


def _task_origin(task: str | None, router: Path | None) -> "tuple[str, AssignTasks | None]":
    """How imported pairs get their tasks: in words, and as a function; no function when the dataset has tasks of its own.

    Raises ValueError for a task that no editor is trained on.
    """
    if task:
        from emuedit.tasks import get_task

        if get_task(task).index is None:
            raise ValueError(f"want a task that editors are trained on, got {task}, which is for inversion; name another --task")
        return f"all {task}", lambda texts: [task] * len(texts)
    if router:
        from emuedit.data.publish import read_summary
        from emuedit.editor import task_predictor

        predictor = task_predictor.load(str(router))
        return f"by router {read_summary(router).key}", lambda texts: [found.task for found in predictor.predict(texts)]
    return "the dataset alone", None


def _export(options: argparse.Namespace) -> None:
    from emuedit.data.formats import pair_export

    print(f"{options.out}: {pair_export.export_pairs(options.out, Path()).counts}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emuedit", description="An open Emu Edit: edit pictures by instruction.")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_edit(commands.add_parser("edit", help="edit a picture", allow_abbrev=False))
    _add_import(commands.add_parser("import", help="convert a public dataset to pairs", allow_abbrev=False))
    export = commands.add_parser("export", help="write the kept pairs as a dataset for others", allow_abbrev=False)
    export.set_defaults(run=_export)
    export.add_argument("out", type=Path, help="new folder for the kept pairs of data/pairs")
    promotion_commands.add_commands(commands)
    server_commands.add_commands(commands)
    remote_commands.add_commands(commands)
    return parser


def _add_edit(edit: argparse.ArgumentParser) -> None:
    edit.set_defaults(run=_edit)
    edit.add_argument("image", type=Path, help="the picture to edit")
    several = "what to change; several are carried out one after the other"
    edit.add_argument("instructions", nargs="+", metavar="instruction", help=several)
    edit.add_argument("-o", "--out", type=Path, help="where to write the result; default: <image>-edited.png")
    sources = f"folder, {CHAMPION}, runs:/<id>/<path> or hub id; default: the champion, else {MODELS / EDITOR}"
    edit.add_argument("--model", help=sources)
    edit.add_argument("--task", help="the task, if the task predictor is not to choose it; forces what it refuses")
    edit.add_argument("--keep-turns", action="store_true", help="also write every turn, as <out>-1.png, <out>-2.png, ...")
    edit.add_argument("--overwrite", action="store_true", help="allow the result to replace the picture itself")
    edit.add_argument("--mask", type=Path, help="also write a picture that is white where pixels changed")
    settings = edit.add_argument_group("settings", "by default those with which the editor was evaluated")
    for name, field in EditSettings.model_fields.items():
        text = (field.description or "").replace("\n", " ").replace("%", "%%")
        settings.add_argument(f"--{name.replace('_', '-')}", dest=name, type=field.annotation, help=text)  # type: ignore[arg-type]


def _add_import(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_import)
    command.add_argument("format", help=f"format of the dataset: {', '.join(FORMAT_NAMES)}")
    command.add_argument("folder", type=Path, help="folder with the dataset's Parquet files, at any depth")
    command.add_argument("out", type=Path, help="new folder for the pairs")
    only = "which of the files, such as 'train-*.parquet'; default: all"
    command.add_argument("--files", default="*.parquet", metavar="PATTERN", help=only)
    tasks = command.add_mutually_exclusive_group()
    tasks.add_argument("--task", help="the task of every pair")
    tasks.add_argument("--router", type=Path, metavar="FOLDER", help="task predictor that finds each task, such as models/router")
    sizes = "side in pixels to which pictures are cropped and scaled, the base model's for training; default: unchanged"
    command.add_argument("--size", type=int, metavar="PX", help=sizes)
