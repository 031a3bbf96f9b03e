"""`emuedit init`: write the params and deps of a photo world into a clone that has those of the toy world."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emuedit import git, params_check
from emuedit.config import PARAMS_FILE, ParamsError
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import PIPELINE_FILE
from emuedit.git import GitError
from emuedit.models.model_sources import split_revision
from emuedit.worlds import hub_pins, model_access, photo_world, pipeline_deps, tuned_params
from emuedit.worlds.photo_world import MODELS, PRESETS, PhotoWorld

_FILES = (PARAMS_FILE, PIPELINE_FILE)
_DEFAULT_PRESET = next(iter(PRESETS))
_DEFAULTS = {"column": "caption", "benchmark": "benchmark", "name": "photos", "preset": _DEFAULT_PRESET, **MODELS}
_KEYS = ("captions", *_DEFAULTS, "base_model")
"""Options with texts."""


def add_commands(commands: Any) -> None:
    """Add the command to `emuedit`'s parser."""
    command = commands.add_parser("init", help="write params.yaml and dvc.yaml for your own captions, images and models")
    command.set_defaults(run=_run)
    command.epilog = "Options that are left out have the value of the params.yaml of an earlier init, or else their default."
    command.add_argument(
        "captions", nargs="?",
        help="your captions: .txt (one per line), .csv, .jsonl, .parquet, or a .yaml for a hub dataset; required the first time",
    )  # fmt: skip
    command.add_argument("--column", help=f"column of a table or dataset (default: {_DEFAULTS['column']})")
    benchmark = f"folder of held-out edits (default: {_DEFAULTS['benchmark']})"
    command.add_argument("--benchmark", metavar="FOLDER", help=benchmark)
    command.add_argument("--name", help=f"name of the world in reports (default: {_DEFAULTS['name']})")
    presets = f"training preset, which also names the base model: {', '.join(PRESETS)} (default: {_DEFAULT_PRESET})"
    command.add_argument("--preset", choices=PRESETS, help=presets, metavar="PRESET")
    command.add_argument("--base-model", metavar="MODEL", help="another base model of the same architecture: folder or hub id")
    for key, default in MODELS.items():
        kinds = {"llm": "folder, hub id, https://host/v1#model or module:factory", "segmenter": "checkpoint file or folder"}
        text = f"{kinds.get(key, 'folder or hub id')} (default: {default})"
        command.add_argument(f"--{key}", metavar="MODEL", help=text)
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
    earlier, template = (file.read_text(encoding="utf-8") for file in (root / PARAMS_FILE, photo_world.TEMPLATE))
    world, recorded = _choose(options, *tuned_params.read(earlier, template))
    models = dict(world.models)
    local = {key: (root / name).exists() for key, name in models.items()} | {"segmenter": True}  # always a local file
    pipeline = pipeline_deps.rewrite((root / PIPELINE_FILE).read_text(encoding="utf-8"), local)
    pinned, unpinned, as_before = ({}, "", "") if options.no_pin else _pin(models, recorded, root)
    models |= pinned
    problems, unchecked = model_access.check(models, root, asks_hub=not unpinned)
    if problems:
        raise ParamsError("\n".join(problems))
    world = replace(world, models=models)
    params, further = photo_world.render(world, root, tuned_params.sections(earlier))
    limited = {} if world.n_captions is None else {"n_captions": world.n_captions}
    params, kept = tuned_params.keep(earlier, params, template, world.options(), limited)
    notes = [note for note in (_describe(recorded, world.preset), unpinned, as_before, unchecked, *kept) if note]
    for name, text in zip(_FILES, (params, pipeline), strict=True):
        with replacing(root / name) as partial:
            partial.write_text(text, encoding="utf-8")
    print(f"wrote {' and '.join(_FILES)} for {world.preset}; `git diff` shows what changed")
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


def _choose(
    options: argparse.Namespace, earlier: Mapping[str, Any], computed: Mapping[str, Any]
) -> tuple[PhotoWorld, dict[str, Any]]:
    """(the choices: options, else the values of the earlier file, else defaults; those of the earlier file).

    earlier, computed: see `tuned_params.read`. The base model of the earlier preset is replaced by that of a new preset, and a
    number of captions that was computed is computed again. Raises ParamsError if no captions were ever named.
    """
    recorded: dict[str, Any] = {key: value for key, value in earlier.items() if key in _KEYS and isinstance(value, str)}
    if recorded.get("preset") not in PRESETS:  # changed by hand
        recorded.pop("preset", None)
    n_captions = earlier.get("n_captions")
    if computed and isinstance(n_captions, int) and n_captions != computed.get("n_captions"):
        recorded["n_captions"] = n_captions
    requested = {key: getattr(options, key) for key in (*_KEYS, "n_captions") if getattr(options, key) is not None}
    preset = (_DEFAULTS | recorded | requested)["preset"]
    defaults: dict[str, Any] = _DEFAULTS | {"base_model": PRESETS[preset].base_model}
    earlier_preset, base_model = recorded.get("preset"), split_revision(recorded.get("base_model", ""))[0]
    if earlier_preset and base_model == PRESETS[earlier_preset].base_model != defaults["base_model"]:
        del recorded["base_model"]
    chosen = defaults | recorded | requested
    if "captions" not in chosen:
        raise ParamsError("want your captions, got none and no earlier params.yaml that names them; name them: emuedit init FILE")
    models = {key: chosen[key] for key in (*MODELS, "base_model")}
    others = {key: chosen[key] for key in ("name", "captions", "column", "preset", "benchmark")}
    taken = {key: value for key, value in recorded.items() if key not in requested}
    return PhotoWorld(**others, models=models, n_captions=chosen.get("n_captions")), taken


def _describe(recorded: Mapping[str, Any], preset: str) -> str:
    """A note on the values of the earlier file that are not the preset's defaults; empty if there are none."""
    defaults = _DEFAULTS | {"base_model": PRESETS[preset].base_model}
    changed = {key: value for key, value in recorded.items() if split_revision(str(value))[0] != defaults.get(key)}
    texts = [f"{_option(key)} {value}".strip() for key, value in changed.items()]
    return f"taken from the earlier params.yaml: {', '.join(texts)}; an option replaces its value" if texts else ""


def _option(key: str) -> str:
    return "" if key == "captions" else "--" + key.replace("_", "-")


def _pin(models: Mapping[str, str], recorded: Mapping[str, Any], root: Path) -> tuple[dict[str, str], str, str]:
    """(pinned models, a note on those that could not be pinned, a note on those of the earlier file).

    Models that the earlier file did not pin stay as they are: their names are params of finished stages, which would run again.
    """
    pinned, unpinned = hub_pins.pin({key: name for key, name in models.items() if key not in recorded}, root)
    left = [f"{_option(key)} {models[key]}" for key in models if key in recorded and hub_pins.is_unpinned(key, models[key], root)]
    advice = "to pin a model, give its option again; the stages that use it then run again"
    return pinned, unpinned, f"not pinned to a commit, as in the earlier params.yaml: {', '.join(left)}; {advice}" if left else ""


def _check_unchanged(root: Path) -> None:
    """Raise ParamsError if the files differ from the last commit or have none: their content would be lost."""
    try:
        reason = "they have uncommitted changes" if git.run(root, "status", "--porcelain", "--", *_FILES) else ""
    except GitError as error:
        reason = str(error)
    if reason:
        raise ParamsError(f"{' and '.join(_FILES)} would be overwritten: {reason}; commit them, or add --overwrite")
