"""`emuedit init`: the params and deps of a world of photographs, for a clone whose params are the toy world's."""

import argparse
import subprocess
from pathlib import Path
from typing import Any

from emuedit import params_check
from emuedit.config import PARAMS_FILE, ParamsError
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import PIPELINE_FILE
from emuedit.worlds import hub_pins, photo_world, pipeline_deps
from emuedit.worlds.photo_world import MODELS, PRESETS, PhotoWorld

_FILES = (PARAMS_FILE, PIPELINE_FILE)
_DEFAULT_PRESET = next(iter(PRESETS))


def add_commands(commands: Any) -> None:
    """Add the command to `emuedit`'s parser."""
    command = commands.add_parser(
        "init", help="write params.yaml and dvc.yaml for your own captions, pictures and models", allow_abbrev=False
    )
    command.set_defaults(run=_run)
    command.add_argument("captions", help="your captions: .txt (one a line), .csv, .jsonl, .parquet, or a .yaml of a hub dataset")
    command.add_argument("--column", default="caption", help="column of a table or dataset (default: caption)")
    command.add_argument("--benchmark", default="benchmark", metavar="FOLDER", help="your edits to judge by (default: benchmark)")
    command.add_argument("--name", default="photos", help="what the world is called in reports (default: photos)")
    presets = f"training preset, which also names the base model: {', '.join(PRESETS)} (default: {_DEFAULT_PRESET})"
    command.add_argument("--preset", choices=PRESETS, default=_DEFAULT_PRESET, help=presets, metavar="PRESET")
    command.add_argument("--base-model", metavar="MODEL", help="another base model of that kind: folder or hub id")
    for key, default in MODELS.items():
        kinds = {"llm": "folder, hub id or https://host/v1#model", "segmenter": "checkpoint file or folder"}
        text = f"{kinds.get(key, 'folder or hub id')} (default: {default})"
        command.add_argument(f"--{key}", default=default, metavar="MODEL", help=text)
    command.add_argument("--no-pin", action="store_true", help="leave hub ids as they are, without the commits of today")
    command.add_argument("--overwrite", action="store_true", help="also where these files have changes that git does not have")


def _run(options: argparse.Namespace) -> int:
    root = Path()
    if missing := [name for name in _FILES if not (root / name).is_file()]:
        raise ParamsError(f"want a clone of emuedit, got no {' and no '.join(missing)} in {root.resolve()}")
    if not options.overwrite:
        _check_unchanged(root)
    models = {key: getattr(options, key) for key in MODELS}
    models["base_model"] = options.base_model or PRESETS[options.preset].base_model
    local = {key: (root / name).exists() for key, name in models.items()} | {"segmenter": True}  # it can be nothing else
    pipeline = pipeline_deps.rewrite((root / PIPELINE_FILE).read_text(encoding="utf-8"), local)
    notes = []
    if not options.no_pin:
        models, unpinned = hub_pins.pin(models, root)
        notes += [unpinned] if unpinned else []
    world = PhotoWorld(options.name, options.captions, options.column, options.preset, models, options.benchmark)
    params, further = photo_world.render(world, root)
    for name, text in zip(_FILES, (params, pipeline), strict=True):
        with replacing(root / name) as partial:
            partial.write_text(text, encoding="utf-8")
    print(f"wrote {' and '.join(_FILES)} for {options.preset}; `git diff` shows what changed")
    for note in notes + further:
        print(f"- {note}")
    try:
        params_check.check(root)
    except ParamsError as error:
        print("\nstill missing:")
        for line in str(error).splitlines():
            print(f"- {line}")
    print("\nnext: docs/own-data.md; `uv run retrain --dry-run` checks the files again and shows what would run")
    return 0


def _check_unchanged(root: Path) -> None:
    """Raise ParamsError where the files differ from the last commit, or there is none: their text would be lost."""
    command = ["git", "status", "--porcelain", "--", *_FILES]
    try:
        process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)  # noqa: S603  our own words
        reason = "they have changes that are not committed" if process.stdout.strip() else ""
    except FileNotFoundError:
        reason = "there is no git to ask for their last version"
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip()
    if reason:
        raise ParamsError(f"{' and '.join(_FILES)} would be written anew: {reason}; commit them, or add --overwrite")
