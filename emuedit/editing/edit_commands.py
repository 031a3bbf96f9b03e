"""`emuedit edit in.png "make the circle red" -o out.png`, and `emuedit replay`, which repeats the edits of a session file."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emuedit.data import image_io
from emuedit.data.writable_folder import check_writable
from emuedit.editing.api import Editor, TruncatedInstructionWarning
from emuedit.editing.edit_turn import Turn
from emuedit.editing.session import ANIMATION_SUFFIXES, EditSession, NumberFormatWarning
from emuedit.editor import changed_area
from emuedit.editor.package_folder import CHAMPION_URI
from emuedit.editor.package_layout import EDITOR, MODELS
from emuedit.editor.settings import EditSettings
from emuedit.progress import Progress, waiting


def add_commands(commands: Any) -> None:
    """Add the commands to `emuedit`'s parser."""
    _add_edit(commands.add_parser("edit", help="edit an image"))
    _add_replay(commands.add_parser("replay", help="repeat the edits of a session file"))


def _edit(options: argparse.Namespace) -> None:
    picture = image_io.read_image(options.image)
    out = options.out or options.image.with_name(f"{options.image.stem}-edited.png")
    _check_out(out, options.image, options.overwrite)
    turn_files = _turn_files(out, len(options.instructions)) if options.keep_turns else []
    for file in turn_files:
        _check_out(file, options.image)
    if options.mask:
        _check_out(options.mask, options.image)
    if options.session:
        _check_out(options.session, options.image, suffixes=())
    _check_distinct([out, *turn_files, *filter(None, (options.mask, options.session))])
    for note in picture.notes:
        print(f"{options.image}: {note}")
    with waiting("loading the editor"):
        editor = Editor.load(options.model)
    changes = {setting: getattr(options, setting) for setting in EditSettings.model_fields}
    settings = editor.settings.with_changes({setting: value for setting, value in changes.items() if value is not None})
    tasks = [options.task] * len(options.instructions) if options.task else None
    with warnings.catch_warnings(record=True, category=TruncatedInstructionWarning) as cut_instructions:
        warnings.simplefilter("always", TruncatedInstructionWarning)
        with Progress("editing", len(options.instructions) * settings.steps, "step") as progress:
            session = EditSession(editor, picture.pixels)
            session.extend(options.instructions, tasks, settings, progress.advance)
    _print_warnings(cut_instructions)
    for number, turn in enumerate(session.turns, start=1):
        path = turn_files[number - 1] if turn_files else None
        if path:
            _write(path, turn.pixels, picture)
        print(f"{_describe(turn)}; {turn.changed}" + (f" -> {path}" if path else ""))
    edited = session.pixels
    _write(out, edited, picture)
    height, width = edited.shape[:2]
    print(f"{out}: {width} x {height}, {progress.seconds:.1f} s, {settings.steps} steps, {editor.name}")
    if options.session:
        session.save(options.session)
        print(f"{options.session}: session file; `emuedit replay` reproduces the images from it")
    if options.mask:
        mask = changed_area.changed_mask(picture.pixels, edited)
        _write(options.mask, changed_area.mask_image(mask), None)
        print(f"{options.mask}: white where pixels changed")


def _replay(options: argparse.Namespace) -> None:
    picture = image_io.read_image(options.image)
    out = options.out or options.image.with_name(f"{options.image.stem}-edited.png")
    _check_out(out, options.image, options.overwrite)
    if options.sheet:
        _check_out(options.sheet, options.image)
    if options.animation:
        _check_out(options.animation, options.image, suffixes=ANIMATION_SUFFIXES)
    _check_distinct([out, *filter(None, (options.sheet, options.animation))])
    with waiting("loading the editor"):
        editor = Editor.load(options.model)
    with warnings.catch_warnings(record=True, category=NumberFormatWarning) as other_formats:
        warnings.simplefilter("always", NumberFormatWarning)
        try:
            with waiting("editing"):
                session = EditSession.replay(editor, picture.pixels, options.session, options.any_image)
        finally:
            _print_warnings(other_formats)
    _write(out, session.pixels, picture)
    for turn in session.turns:
        print(f"{_describe(turn)}; {turn.changed}")
    print(f"{out}: {len(session.turns)} turns")
    if options.sheet:
        _write(options.sheet, np.asarray(session.contact_sheet().convert("RGB")), None)
        print(f"{options.sheet}: all turns")
    if options.animation:
        session.save_animation(options.animation)
        print(f"{options.animation}: all turns, one per second")


def _print_warnings(caught: Sequence[warnings.WarningMessage]) -> None:
    for warning in caught:
        print(f"emuedit: {warning.message}", file=sys.stderr)


def _check_out(
    out: Path, image: Path, overwrite: bool | None = None, suffixes: Sequence[str] = image_io.WRITABLE_SUFFIXES
) -> None:
    """Raise ImageError or FolderError for an output that cannot be written, before the edit starts.

    Empty `suffixes`: any suffix is valid.

    `overwrite`: whether the output may be the input image; None: never.
    """
    if out.exists() and out.samefile(image) and not overwrite:
        advice = "name another file with -o, or add --overwrite" if overwrite is not None else "name another file"
        raise image_io.ImageError(f"{out} is the image itself; {advice}")
    if out.is_dir():
        raise image_io.ImageError(f"want an output file, got the folder {out}; name a file in it, such as {out / 'out.png'}")
    if not out.parent.is_dir():
        raise image_io.ImageError(f"want a folder to write to, got none at {out.parent}")
    if out.is_file() or not out.exists():  # not a special file such as /dev/stdout
        check_writable(out.resolve().parent)
    if suffixes and out.suffix.lower() not in suffixes:
        raise image_io.ImageError(f"want an output file that ends in {', '.join(suffixes)}; got {out}")


def _turn_files(out: Path, n_turns: int) -> list[Path]:
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, n_turns + 1)]


def _check_distinct(files: Sequence[Path]) -> None:
    """Raise ImageError if two outputs have the same path, so that one would replace the other."""
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise image_io.ImageError(f"want a file for each output, got {file} twice; name another file")
        seen.add(file.resolve())


def _write(path: Path, pixels: image_io.Pixels, source: image_io.LoadedImage | None) -> None:
    for note in image_io.write_image(path, pixels, source):
        print(f"{path}: {note}")


def _describe(turn: Turn) -> str:
    choice = turn.choice
    if choice.probability is None:
        return f'"{turn.instruction}": {choice.task}, as given'
    if choice.second is None:
        return f'"{turn.instruction}": {choice.task} ({choice.probability:.0%})'
    readings = f"{choice.task} ({choice.probability:.0%}) or {choice.second} ({choice.second_probability:.0%})"
    return f'"{turn.instruction}": {readings}; used {choice.task}; --task {choice.second} selects the other'


def _add_edit(edit: argparse.ArgumentParser) -> None:
    edit.set_defaults(run=_edit)
    edit.add_argument("image", type=Path, help="the image to edit")
    several = "what to change; several instructions are applied in sequence"
    edit.add_argument("instructions", nargs="+", metavar="instruction", help=several)
    edit.add_argument("-o", "--out", type=Path, help="where to write the result; default: <image>-edited.png")
    sources = f"folder, {CHAMPION_URI}, runs:/<id>/<path> or hub id; default: the registered champion, else {MODELS / EDITOR}"
    edit.add_argument("--model", help=sources)
    edit.add_argument("--task", help="use this task; skips the task predictor")
    edit.add_argument("--keep-turns", action="store_true", help="also write every turn, as <out>-1.png, <out>-2.png, ...")
    edit.add_argument("--overwrite", action="store_true", help="allow overwriting the input image")
    edit.add_argument("--session", type=Path, help="also write a session file, from which `emuedit replay` reproduces the images")
    edit.add_argument("--mask", type=Path, help="also write a mask, white where pixels changed")
    settings = edit.add_argument_group("settings", "default: the settings of the evaluation")
    for name, field in EditSettings.model_fields.items():
        text = (field.description or "").replace("\n", " ").replace("%", "%%")
        settings.add_argument(f"--{name.replace('_', '-')}", dest=name, type=field.annotation, help=text)  # type: ignore[arg-type]


def _add_replay(replay: argparse.ArgumentParser) -> None:
    replay.set_defaults(run=_replay)
    replay.add_argument("session", type=Path, help="the file that `emuedit edit --session` wrote")
    replay.add_argument("image", type=Path, help="the input image of the session")
    replay.add_argument("-o", "--out", type=Path, help="where to write the result; default: <image>-edited.png")
    replay.add_argument("--model", help="the editor, as for `emuedit edit`")
    replay.add_argument("--any-image", action="store_true", help="apply the edits to another image")
    replay.add_argument("--overwrite", action="store_true", help="allow overwriting the input image")
    replay.add_argument("--sheet", type=Path, help="also write a contact sheet of all turns (.png, .jpg, ...)")
    replay.add_argument("--animation", type=Path, help="also write an animation of all turns (.gif, .webp, .png)")
