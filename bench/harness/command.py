"""Common parts of the benchmarks: options, result file, last line of the output, hardware description.

`uv run python bench/<name>.py` writes `bench/results/<name>.json` and prints the same results as one JSON object on its
last line. With `--quick`, which takes at most a minute on two cores unless the script says otherwise, it writes
`bench/results/<name>.quick.json` instead, which git ignores.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from emuedit.data.dependencies import SUMMARY_FILE
from emuedit.processes import available_cores, set_env_defaults

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""CPU flags for bfloat16 arithmetic: two of x86, one of Arm."""
VECTOR_FLAGS = ("avx2", "avx512f", "asimd", "sve")


def argument_parser(description: str | None, quick: str) -> argparse.ArgumentParser:
    """A parser with the option `--quick`, whose help is `quick`. `description` is the docstring of the script.

    What it parses has the parser itself as `parser`, for `write_result`.
    """
    set_env_defaults()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.set_defaults(parser=parser)
    return parser


def changed_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The options other than `--quick` that differ from their defaults, by name.

    Paths do not depend on the machine: relative to the project if they are in it, else only their last part.
    """
    names = vars(args).keys() - {"quick", "parser"}
    values = {name: (_describe(getattr(args, name)), _describe(args.parser.get_default(name))) for name in sorted(names)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _describe(value: Any) -> Any:
    if not isinstance(value, Path):
        return value
    path = value.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Add the option `--workspace`: folder in which the stages of the pipeline ran."""
    parser.add_argument(
        "--workspace",
        type=Path,
        default=ROOT,
        help="folder with params.yaml and the outputs of the stages; default: the project",
    )


def add_editor(parser: argparse.ArgumentParser) -> None:
    """Add the option `--editor`: folder of the editor to measure."""
    parser.add_argument("--editor", type=Path, default=ROOT / "toyworld/weights/base_editor", help="folder of the editor")


def require_outputs(workspace: Path, *folders: str) -> None:
    """Exit with an explanation if a published output of a stage is missing in the workspace."""
    missing = [folder for folder in folders if not (workspace / folder / SUMMARY_FILE).is_file()]
    if missing:
        sys.exit(f"want {', '.join(missing)} in {workspace}, got none; run `uv run retrain` there, or name another --workspace")


def environment_without_mlflow() -> dict[str, str]:
    """The environment for a measured process, which must not report to a tracking server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def replace_link(link: Path, target: Path) -> None:
    """Let `link` be a symbolic link to a file or folder; a link to another one, from an earlier run, is replaced."""
    target = target.resolve()
    if link.is_symlink():
        if link.readlink() == target:
            return
        link.unlink()
    link.symlink_to(target)


def result_path(script: str, quick: bool, suffix: str = ".json") -> Path:
    """Output file of a script (its `__file__`): `bench/results/<name><suffix>`, `<name>.quick<suffix>` with `--quick`."""
    return RESULTS / f"{Path(script).stem}{'.quick' if quick else ''}{suffix}"


def write_result(script: str, figures: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Write the results of a script (its `__file__`) with its changed arguments and the hardware; print them as one line of JSON.

    args: what the parser of `argument_parser` has parsed.
    """
    result = {**figures, "quick": args.quick, "arguments": changed_arguments(args), "hardware": describe_hardware()}
    path = result_path(script, args.quick)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


def describe_hardware() -> dict[str, Any]:
    """Processor, number of usable cores, whether bfloat16 is native, GPU, and the versions of Python and torch."""
    cpu = _read_lscpu()
    flags = set(cpu.get("Flags", "").split())
    return {
        "cpu": cpu.get("Model name", platform.processor()),
        "cpu_family": cpu.get("CPU family"),
        "cpu_model": cpu.get("Model"),
        "cores": available_cores(),
        "vector_extensions": [flag for flag in VECTOR_FLAGS if flag in flags],
        "bfloat16_native": bool(flags & BFLOAT16_FLAGS),
        "gpu": _gpu_name(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def _read_lscpu() -> dict[str, str]:
    """The fields of `lscpu` by name; empty if the program is missing."""
    program = shutil.which("lscpu")
    if program is None:
        return {}
    english = os.environ | {"LC_ALL": "C"}
    output = subprocess.run([program], capture_output=True, text=True, check=True, env=english).stdout
    fields = (line.partition(":") for line in output.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def _gpu_name() -> str | None:
    """The GPU used by torch; none for scripts that do not import torch."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
