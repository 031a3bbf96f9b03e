"""The command line: `emuedit edit in.png "make the circle red" -o out.png`, and pairs in and out of the formats of others."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emuedit.data import image_io
from emuedit.data.formats import FORMAT_NAMES
from emuedit.editor.package import EDITOR, Bundle, BundleError, EditSettings, Turn
from emuedit.runtime import set_env_defaults

if TYPE_CHECKING:
    from emuedit.data.formats.row_conversion import AssignTasks

MODELS = Path("models")
REGISTERED = "models:/emuedit-editor@champion"
HELP = {
    "image": "the picture to edit",
    "instructions": "what to change; several are carried out one after the other",
    "out": "where to write the result; default: <image>-edited.png",
    "model": f"a folder, or {REGISTERED} (the default; without one: {MODELS / EDITOR})",
    "task": "the task, if the router is not to choose it",
    "seed": "where the noise starts; the same seed gives the same picture",
    "steps": "denoising steps; more is slower",
    "image_guidance": "s_I: how much to keep to the picture",
    "text_guidance": "s_T: how much to follow the instruction",
    "rescale": "0 to 1: how far guidance is pulled back from burnt colours",
    "hold": "0 to 1: how much of the picture is kept where the editor sees nothing to change",
    "alpha": "pixels that change less than this stay as they were; 0 keeps none",
    "keep_turns": "also write the picture after every instruction, as <out>-1.png, <out>-2.png, ...",
    "overwrite": "allow the result to take the place of the picture itself",
    "layout": f"whose columns they have: {', '.join(FORMAT_NAMES)}",
    "folder": "folder with the dataset's Parquet files, at any depth",
    "pairs": "new folder for the pairs",
    "files": "which of the files, such as 'train-*.parquet'; default: all",
    "all_task": "the task of every pair",
    "router": "folder of the router that tells the task of every pair from its instruction, such as models/router",
    "size": "pixels a side of the pictures, cut square and scaled; training wants the base_model's; default: as they come",
    "dataset": "new folder for the kept pairs of data/pairs, as a dataset for others",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 when something was asked for that cannot be."""
    set_env_defaults()
    asked = _parser().parse_args(arguments)
    try:
        asked.do(asked)
    except (BundleError, image_io.ImageError, ValueError, FileNotFoundError) as error:
        print(f"emuedit: {error}", file=sys.stderr)
        return 2
    return 0


def _edit(asked: argparse.Namespace) -> None:
    out = asked.out or asked.image.with_name(f"{asked.image.stem}-edited.png")
    if out.exists() and out.samefile(asked.image) and not asked.overwrite:
        raise image_io.ImageError(f"{out} is the picture itself; name another file with -o, or say --overwrite")
    if not out.parent.is_dir():
        raise image_io.ImageError(f"want a folder to write to, got none at {out.parent}")
    picture = image_io.read_image(asked.image)
    for note in picture.notes:
        print(f"{asked.image}: {note}")
    folder, name = resolve(asked.model)
    bundle = Bundle.load(folder, knobs=_measured() if folder == MODELS else None)
    told = {"steps": asked.steps, "s_I": asked.image_guidance, "s_T": asked.text_guidance}
    told |= {"phi": asked.rescale, "hold": asked.hold, "alpha": asked.alpha}
    knobs = _checked(dataclasses.replace(bundle.knobs, **{key: value for key, value in told.items() if value is not None}))
    tasks = [asked.task] * len(asked.instructions) if asked.task else []
    turns = bundle.edit(picture.pixels, asked.instructions, tasks, asked.seed, knobs)
    for number, turn in enumerate(turns, start=1):
        where = out.with_name(f"{out.stem}-{number}{out.suffix}") if asked.keep_turns else None
        print(_said(turn) + (f" -> {where}" if where else ""))
        if where:
            _write(where, turn)
    _write(out, turns[-1])
    height, width = turns[-1].pixels.shape[:2]
    print(f"{out}: {width} x {height}, {bundle.seconds:.1f} s, {knobs.steps} steps, {name}")


def resolve(model: str | None) -> tuple[Path, str]:
    """Folder of a model and what to call it. None: the champion of the default tracking store, or else `models/editor` here.

    Raises BundleError when there is neither, RegistryError for a registered model that is not there.
    """
    if model is not None and not model.startswith("models:/"):
        return Path(model), model
    store = os.environ.get("MLFLOW_TRACKING_URI") or Path("mlflow.db").exists()  # opening a store that is not there makes one
    if model is not None or store:
        from emuedit.tracking import registry

        if model is not None or registry.version_at("champion"):
            uri = model or REGISTERED
            return registry.download_version(uri), uri
    if not (MODELS / EDITOR).is_dir():
        raise BundleError(
            f"no champion is registered and there is no {MODELS / EDITOR} here; run `uv run retrain` or name a --model"
        )
    return MODELS, str(MODELS / EDITOR)


def _measured() -> EditSettings:
    """The knobs with which the working folder's own editor was evaluated."""
    import yaml

    path = Path("params.yaml")
    section = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("evaluation", {}) if path.exists() else {}
    return dataclasses.replace(
        EditSettings(), **{key: section[key] for key in dataclasses.asdict(EditSettings()) if key in section}
    )


def _said(turn: Turn) -> str:
    if turn.probability is None:
        return f'"{turn.instruction}": {turn.task}, as told'
    second = f"; {turn.second} is close, choose it with --task" if turn.second else ""
    return f'"{turn.instruction}": {turn.task} ({turn.probability:.0%}{second})'


def _write(path: Path, turn: Turn) -> None:
    if path.suffix.lower() == ".png":
        path.write_bytes(image_io.to_png(turn.pixels))
        return
    from PIL import Image

    try:
        Image.fromarray(turn.pixels).save(path)
    except ValueError as error:
        raise image_io.ImageError(f"want an output file such as out.png or out.jpg, got {path}") from error


def _checked(knobs: EditSettings) -> EditSettings:
    if not 1 <= knobs.steps <= 1000:
        raise BundleError(f"want --steps from 1 to 1000, got {knobs.steps}")
    if knobs.alpha < 0:
        raise BundleError(f"want --alpha of 0 or more, got {knobs.alpha}")
    for name, value in (("rescale", knobs.phi), ("hold", knobs.hold)):
        if not 0 <= value <= 1:
            raise BundleError(f"want --{name} from 0 to 1, got {value}")
    return knobs


def _import(asked: argparse.Namespace) -> None:
    from emuedit.data.formats import pair_format, pair_import
    from emuedit.data.formats.row_conversion import ImportOptions

    wanted = ImportOptions(pair_format.get_format(asked.layout), asked.size, *_told(asked.task, asked.router))
    summary = pair_import.import_pairs(wanted, pair_import.find_parquet_files(asked.folder, asked.files), asked.out, Path())
    print(f"{asked.out}: {summary.counts}")


def _told(task: str | None, router: Path | None) -> "tuple[str, AssignTasks | None]":
    """How imported pairs get their tasks: in words, and as a function. ValueError for a task that no editor is trained on."""
    if task:
        from emuedit.tasks import get_task

        if get_task(task).index is None:
            raise ValueError(f"want a task that editors are trained on, got {task}, which is for inversion; name another --task")
        return f"all {task}", lambda texts: [task] * len(texts)
    if router:
        from emuedit.data.publish import read_summary
        from emuedit.editor import task_predictor

        guide = task_predictor.load(str(router))
        return f"by router {read_summary(router).fingerprint}", lambda texts: [guess.task for guess in guide.predict(texts)]
    return "the dataset alone", None


def _export(asked: argparse.Namespace) -> None:
    from emuedit.data.formats import pair_export

    print(f"{asked.out}: {pair_export.export_pairs(asked.out, Path()).counts}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emuedit", description="An open Emu Edit: edit pictures by instruction.")
    commands = parser.add_subparsers(required=True, metavar="command")
    edit = commands.add_parser("edit", help="edit a picture")
    edit.set_defaults(do=_edit)
    edit.add_argument("image", type=Path, help=HELP["image"])
    edit.add_argument("instructions", nargs="+", metavar="instruction", help=HELP["instructions"])
    edit.add_argument("-o", "--out", type=Path, help=HELP["out"])
    edit.add_argument("--model", help=HELP["model"])
    edit.add_argument("--task", help=HELP["task"])
    edit.add_argument("--seed", type=int, default=0, help=HELP["seed"])
    edit.add_argument("--steps", type=int, help=HELP["steps"])
    edit.add_argument("--image-guidance", type=float, metavar="S_I", help=HELP["image_guidance"])
    edit.add_argument("--text-guidance", type=float, metavar="S_T", help=HELP["text_guidance"])
    edit.add_argument("--rescale", type=float, metavar="PHI", help=HELP["rescale"])
    edit.add_argument("--hold", type=float, help=HELP["hold"])
    edit.add_argument("--alpha", type=float, help=HELP["alpha"])
    edit.add_argument("--keep-turns", action="store_true", help=HELP["keep_turns"])
    edit.add_argument("--overwrite", action="store_true", help=HELP["overwrite"])
    bring = commands.add_parser("import", help="make pairs of a public dataset")
    bring.set_defaults(do=_import)
    bring.add_argument("layout", help=HELP["layout"])
    bring.add_argument("folder", type=Path, help=HELP["folder"])
    bring.add_argument("out", type=Path, help=HELP["pairs"])
    bring.add_argument("--files", default="*.parquet", metavar="PATTERN", help=HELP["files"])
    tasks = bring.add_mutually_exclusive_group()
    tasks.add_argument("--task", help=HELP["all_task"])
    tasks.add_argument("--router", type=Path, metavar="FOLDER", help=HELP["router"])
    bring.add_argument("--size", type=int, metavar="PX", help=HELP["size"])
    give = commands.add_parser("export", help="write the kept pairs as a dataset for others")
    give.set_defaults(do=_export)
    give.add_argument("out", type=Path, help=HELP["dataset"])
    return parser
