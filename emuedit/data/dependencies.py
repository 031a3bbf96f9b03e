"""Dependencies of a stage: the `deps` of `dvc.yaml`, used both by DVC and in the keys of scratch folders.

DVC reruns a stage when one of its deps changes. Scratch shards, cached latents and evaluated edits must become invalid at the
same time, so their key is computed from the same list. Tests check that the list covers every module that a stage imports.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emuedit import config
from emuedit.data.file_hashes import HashMemory, hash_all
from emuedit.progress import Progress

PIPELINE_FILE = "dvc.yaml"
SUMMARY_FILE = "summary.json"
CODE_ROOT = Path(__file__).resolve().parents[2]
"""Folder of the package, `toyworld` and the default pipeline; fallback for deps missing in a workspace."""


def stage_dependencies(stage: str, root: Path) -> list[Path]:
    """The files and folders that `dvc.yaml` lists as deps of a stage, with `${...}` filled in from `params.yaml`.

    `dvc.yaml` and deps that are missing in the workspace are looked up next to the code, except outs of stages.
    Deps that exist nowhere are returned as paths below `root`. Raises ParamsError for a stage that is not in the pipeline.
    """
    stages, params = _read_pipeline(root)
    names = _fill_all(stages, params, "deps")
    matching = [name for name in names if name.partition("@")[0] == stage]
    if not matching:
        raise config.ParamsError(f"want stage '{stage}' in {PIPELINE_FILE}, got {', '.join(names)}")
    outs = [root / out for of_stage in _fill_all(stages, params, "outs").values() for out in of_stage]
    return [
        root / dep if any((root / dep).is_relative_to(out) for out in outs) else find_file(dep, root)
        for name in matching
        for dep in names[name]
    ]


def dependency_names(root: Path) -> dict[str, list[str]]:
    """Stage -> the deps that `dvc.yaml` lists, with `${...}` filled in from `params.yaml`."""
    return _fill_all(*_read_pipeline(root), "deps")


def stage_outputs(root: Path) -> list[Path]:
    """The files and folders that the stages of `dvc.yaml` write."""
    return [root / out for of_stage in _fill_all(*_read_pipeline(root), "outs").values() for out in of_stage]


def _read_pipeline(root: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(the stages of `dvc.yaml`, the content of `params.yaml`)."""
    stages = config.read_yaml(find_file(PIPELINE_FILE, root)).get("stages", {})
    return stages, config.read_yaml(find_file(config.PARAMS_FILE, root))


def _fill_all(stages: Mapping[str, Any], params: Mapping[str, Any], key: str) -> dict[str, list[str]]:
    """Stage -> its deps or outs, filled in; without those that differ between the items of its `matrix`."""
    return {
        name: [_fill_in(path, params) for path in stage.get(key, ()) if "${item" not in str(path)]
        for name, stage in stages.items()
    }


def work_key(stage: str, params: Mapping[str, Any], root: Path, *models: str, memory: HashMemory | None = None) -> str:
    """Hash (16 hex digits) of the params, all deps of the stage, and local model folders `models`.

    memory: of the hashes of files; None: all are read.

    The output of a stage counts by its `summary.json`, which has the hashes of its files. Other folders count by their files,
    even if they have a summary: it is not written again when a file is replaced.
    """
    outputs = {path.resolve() for path in stage_outputs(root)}
    paths = {path.resolve(): None for path in stage_dependencies(stage, root)}
    paths |= {path.resolve(): None for path in map(Path, models) if path.exists()}
    inputs = [_summary_of(path) if path in outputs else path for path in paths]
    return content_key(params, *inputs, label=f"{stage}: hash inputs", memory=memory)


def content_key(
    params: Mapping[str, Any], *paths: str | Path, label: str = "hash files", memory: HashMemory | None = None
) -> str:
    """Hash (16 hex digits) of params (any JSON values) and the content of files and folders.

    label: of the progress, which is shown if this takes long. memory: as for `work_key`.
    """
    digest = hashlib.blake2b(json.dumps(params, sort_keys=True).encode(), digest_size=8)
    if not paths:
        return digest.hexdigest()
    with Progress(label, None, "file", only_if_long=True) as progress:
        files = [(path, file) for path in map(Path, paths) for file in files_below(path)]
        progress.set_total(len(files))
        hashes = hash_all([file for _, file in files], memory=memory, advance=progress.advance)
    for (path, file), content in zip(files, hashes, strict=True):
        name = file.relative_to(path).as_posix() if file != path else path.name
        digest.update(f"|{name}:{content}".encode())
    return digest.hexdigest()


def files_below(path: Path) -> list[Path]:
    """The files below a folder, sorted, except bytecode; of a file: the file itself.

    Links to folders are followed, since a model is loaded through them, too; those that lead to a folder above them are not.
    """
    return sorted(_walk(path, (path.resolve(),))) if path.is_dir() else [path]


def _walk(folder: Path, resolved: tuple[Path, ...]) -> Iterator[Path]:
    """The files of a folder; `resolved`: it and those above it, without links."""
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and path.name != "__pycache__":
            target = path.resolve()
            if target not in resolved and not resolved[-1].is_relative_to(target):
                yield from _walk(path, (*resolved, target))


def find_file(name: str, root: Path) -> Path:
    """A file or folder in the workspace, else next to the code; if neither exists, the path in the workspace."""
    here, beside_code = root / name, CODE_ROOT / name
    return beside_code if not here.exists() and beside_code.exists() else here


def _summary_of(output: Path) -> Path:
    """The summary of a published folder, else the output itself."""
    summary = output / SUMMARY_FILE
    return summary if summary.is_file() else output


def _fill_in(dep: str | dict[str, Any], params: Mapping[str, Any]) -> str:
    """A dep or an out with every `${a.b}` replaced by that value of `params.yaml`."""
    text = dep if isinstance(dep, str) else next(iter(dep))

    def value_of(reference: re.Match[str]) -> str:
        value: Any = params
        for key in reference.group(1).split("."):
            value = value[key]
        return str(value)

    return re.sub(r"\$\{([\w.]+)\}", value_of, text)
