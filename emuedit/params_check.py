"""Check all parameters before a run: called by `retrain`, its dry run, and each stage that `dvc repro` starts.

The sections of all stages are validated by their params models, and all files and models that they name must exist. The params
models import torch, so the check runs in another process, and is skipped for files that passed it before. The same holds for a
benchmark of images, each of which is decoded: a broken one would be found only after the training.
"""

import contextlib
import hashlib
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emuedit import config, reference_check
from emuedit.config import PARAMS_FILE, ParamsError
from emuedit.data.dependencies import PIPELINE_FILE, find_file
from emuedit.metrics.benchmark_folder import JUDGE, TABLE, missing_files
from emuedit.name_hints import closest_match, new_name
from emuedit.processes import exit_process
from emuedit.progress import waiting
from emuedit.reference_check import as_mapping

_PACKAGE = Path(__file__).resolve().parent
_STAGE_COMMAND = re.compile(r"python3? -m emuedit\.stages\.(\w+)")
_WORLD = "world"
_OPTIONAL = {
    "promotion": ("emuedit.promotion.gate_settings", "GateSettings"),
    "ledger": ("emuedit.operations.yield_ledger", "LedgerSettings"),
}
"""Sections that belong to no stage -> their params models."""


def check(root: Path) -> None:
    """Raise ParamsError that lists all problems in the parameters of the pipeline in `root`.

    Takes milliseconds if the same params and code have passed the check before.
    """
    params = config.read_yaml(root / PARAMS_FILE)
    stages = as_mapping(config.read_yaml(find_file(PIPELINE_FILE, root)).get("stages"))
    sections = _sections(stages)
    problems = [*_name_problems(params, stages, sections), *reference_check.problems(params, stages, root)]
    present = [name for name in (*sections, *_OPTIONAL) if name in params]
    if present:
        problems = [f"{PARAMS_FILE}: {problem}" for problem in problems]
    if present and not _record_of(root, key := _key(root, params)).exists():
        misfits = _check_models(root, present)
        if not (misfits or problems):
            _remember(root, key)
        problems = misfits + problems
    if problems:
        raise ParamsError("\n".join(problems))


def model_problems(root: Path, sections: list[str]) -> list[str]:
    """Problems that the params models find in these sections, and those of a benchmark's folder; imports the models."""
    problems = []
    for section in sections:
        module, name = _OPTIONAL.get(section, (f"emuedit.stages.{section}", f"{section.title()}Params"))
        try:
            config.load(getattr(importlib.import_module(module), name), section, root / PARAMS_FILE)
        except ParamsError as error:
            problems.append(str(error).replace(f"{root / PARAMS_FILE}", PARAMS_FILE))
    return [*problems, *_benchmark_problems(root)]


def _benchmark_problems(root: Path) -> Iterator[str]:
    """Problems of the table, images and judge of a benchmark's folder.

    A missing table or judge.yaml is reported by `reference_check`.
    """
    folder = _benchmark_folder(root, config.read_yaml(root / PARAMS_FILE))
    if folder is None:
        return
    photo_benchmark = importlib.import_module("emuedit.metrics.photo_benchmark")
    try:
        photo_benchmark.check_images(folder, photo_benchmark.read_rows(folder))
        if JUDGE not in missing_files(folder):
            photo_benchmark.read_judge(folder)
    except photo_benchmark.BenchmarkError as error:
        yield f"{PARAMS_FILE}: {_WORLD}.benchmark: {str(error).replace(f'{root.resolve()}/', '')}"


def _benchmark_folder(root: Path, params: Mapping[str, Any]) -> Path | None:
    """The folder that `world.benchmark` names, if it has a table."""
    reference = as_mapping(params.get(_WORLD)).get("benchmark")
    folder = find_file(reference, root) if isinstance(reference, str) else None
    return folder if folder and (folder / TABLE).is_file() else None


def _sections(stages: Mapping[str, Any]) -> list[str]:
    """Sections of this project's stages in the pipeline, in its order."""
    names: dict[str, None] = {}
    for stage in stages.values():
        command = str((stage.get("do") or stage).get("cmd", "")) if isinstance(stage, Mapping) else ""
        names |= dict.fromkeys(_STAGE_COMMAND.findall(command))
    return [name for name in names if (_PACKAGE / "stages" / f"{name}.py").is_file()]


def _name_problems(params: Mapping[str, Any], stages: Mapping[str, Any], sections: list[str]) -> Iterator[str]:
    """Missing sections, and sections that no stage reads."""
    missing = [name for name in ((_WORLD, *sections) if sections else ()) if name not in params]
    for name in missing:
        yield f"want section '{name}', got none{closest_match(name, params)}; known: {', '.join(map(str, params))}"
    used = {str(key).split(".")[0] for stage in stages.values() for key in _params_of(stage)}
    readable = {_WORLD, *sections, *_OPTIONAL, *used, *(str(name).split("@")[0] for name in stages)}
    for name in map(str, params):
        if name not in readable and sections and not name.startswith(("_", "x-")):  # these contain YAML anchors
            renamed = new_name(name)
            hint = f"; it is now {renamed!r}" if renamed else closest_match(name, readable)
            yield f"no stage reads the section '{name}'{hint}; known: {', '.join(sorted(readable))}"


def _params_of(stage: Any) -> list[str]:
    """The `params` of a stage."""
    listed = as_mapping(as_mapping(stage).get("do") or stage).get("params") or ()
    return [key if isinstance(key, str) else "" for key in listed]


def _check_models(root: Path, sections: list[str]) -> list[str]:
    if "torch" in sys.modules:
        return model_problems(root, sections)
    with waiting(f"checking {PARAMS_FILE}"):
        command = [sys.executable, "-W", "ignore", "-m", __name__, str(root.resolve()), *sections]
        process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_PACKAGE.parent)  # noqa: S603  our module
    if process.returncode:
        raise ParamsError(f"the params models cannot be imported: {(process.stderr.strip().splitlines() or ['killed'])[-1]}")
    return list(json.loads(process.stdout.splitlines()[-1]))


def _remember(root: Path, key: str) -> None:
    """Record that the files with this key passed; if that fails, they are checked again next time."""
    record = _record_of(root, key)
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        for old in record.parent.iterdir():
            old.unlink(missing_ok=True)
        record.touch()


def _record_of(root: Path, key: str) -> Path:
    return root / "scratch" / "params-check" / key


def _key(root: Path, params: Mapping[str, Any]) -> str:
    """Hash of the params, of the code that reads them, and of the times and sizes of a benchmark's files."""
    digest = hashlib.blake2b((root / PARAMS_FILE).read_bytes(), digest_size=12)
    digest.update(find_file(PIPELINE_FILE, root).read_bytes())
    for file in sorted(_PACKAGE.rglob("*.py")) + sorted(_PACKAGE.rglob("*.yaml")):
        status = file.stat()
        digest.update(f"|{file.relative_to(_PACKAGE)}:{status.st_mtime_ns}:{status.st_size}".encode())
    if folder := _benchmark_folder(root, params):
        for file in sorted(folder.rglob("*")):
            status = file.lstat()
            digest.update(f"|{file.relative_to(folder)}:{status.st_mtime_ns}:{status.st_size}".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    print(json.dumps(model_problems(Path(sys.argv[1]), sys.argv[2:])), flush=True)
    exit_process(0)
