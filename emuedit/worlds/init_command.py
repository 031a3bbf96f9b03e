"""`emuedit init`: write the params and deps of a photo world into a clone that has those of the toy world."""

import argparse
from pathlib import Path
from typing import Any

from emuedit import git, params_check
from emuedit.config import PARAMS_FILE, ParamsError
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import PIPELINE_FILE
from emuedit.git import GitError
from emuedit.worlds import hub_pins, model_access, photo_world, pipeline_deps, tuned_params
from emuedit.worlds.photo_world import MODELS, PRESETS, PhotoWorld

_FILES = (PARAMS_FILE, PIPELINE_FILE)
_DEFAULT_PRESET = next(iter(PRESETS))


def add_commands(commands: Any) -> None:
    """Add the command to `emuedit`'s parser."""
    command = commands.add_parser(
        "init", help="write params.yaml and dvc.yaml for your own captions, images and models", allow_abbrev=False
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "captions", help="your captions: .txt (one per line), .csv, .jsonl, .parquet, or a .yaml for a hub dataset"
    )
    command.add_argument("--column", default="caption", help="column of a table or dataset (default: caption)")
    command.add_argument(
        "--benchmark", default="benchmark", metavar="FOLDER", help="folder of held-out edits (default: benchmark)"
    )
    command.add_argument("--name", default="photos", help="name of the world in reports (default: photos)")
    presets = f"training preset, which also names the base model: {', '.join(PRESETS)} (default: {_DEFAULT_PRESET})"
    command.add_argument("--preset", choices=PRESETS, default=_DEFAULT_PRESET, help=presets, metavar="PRESET")
    command.add_argument("--base-model", metavar="MODEL", help="another base model of the same architecture: folder or hub id")
    for key, default in MODELS.items():
        kinds = {"llm": "folder, hub id, https://host/v1#model or module:factory", "segmenter": "checkpoint file or folder"}
        text = f"{kinds.get(key, 'folder or hub id')} (default: {default})"
        command.add_argument(f"--{key}", default=default, metavar="MODEL", help=text)
    command.add_argument(
        "--n-captions", type=int, metavar="N", help="captions to use, and with them the training steps (default: at most 500)"
    )
    command.add_argument("--no-pin", action="store_true", help="do not pin hub ids to their current commits")
    command.add_argument("--overwrite", action="store_true", help="overwrite uncommitted changes; tuned values are kept")


def _run(options: argparse.Namespace) -> int:
    root = Path()
    if missing := [name for name in _FILES if not (root / name).is_file()]:
        raise ParamsError(f"want a clone of emuedit, got no {' and no '.join(missing)} in {root.resolve()}")
    if not options.overwrite:
        _check_unchanged(root)
    models = {key: getattr(options, key) for key in MODELS}
    models["base_model"] = options.base_model or PRESETS[options.preset].base_model
    local = {key: (root / name).exists() for key, name in models.items()} | {"segmenter": True}  # always a local file
    pipeline = pipeline_deps.rewrite((root / PIPELINE_FILE).read_text(encoding="utf-8"), local)
    models, unpinned = (models, "") if options.no_pin else hub_pins.pin(models, root)
    problems, unchecked = model_access.check(models, root, asks_hub=not unpinned)
    if problems:
        raise ParamsError("\n".join(problems))
    world = PhotoWorld(
        options.name, options.captions, options.column, options.preset, models, options.benchmark, options.n_captions
    )
    earlier, template = (file.read_text(encoding="utf-8") for file in (root / PARAMS_FILE, photo_world.TEMPLATE))
    params, further = photo_world.render(world, root, tuned_params.sections(earlier))
    params, kept = tuned_params.keep(earlier, params, template, world.options())
    notes = [note for note in (unpinned, unchecked, *kept) if note]
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
    """Raise ParamsError if the files differ from the last commit or have none: their content would be lost."""
    try:
        reason = "they have uncommitted changes" if git.run(root, "status", "--porcelain", "--", *_FILES) else ""
    except GitError as error:
        reason = str(error)
    if reason:
        raise ParamsError(f"{' and '.join(_FILES)} would be overwritten: {reason}; commit them, or add --overwrite")
