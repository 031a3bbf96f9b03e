"""Samples per second and peak memory of the stage `train`, compared with diffusers' `train_instruct_pix2pix.py`.

`uv run python bench/train.py --published FILE [--shapes A,B] [--quick]` writes `bench/results/train.json`; its last line is the
same JSON. FILE is the script, which is not part of this repository; `--help` has its address for the installed diffusers.

Both train the same U-Net on the same images, with the same resolution, batch and number format, AdamW and EMA, in sequence,
in separate processes. The published script encodes images and texts in every step; the stage encodes them once,
and `encoding_s` says how long that took for 64 pairs. On a CPU, memory is that of all processes of a system, with encoding.
`samples_per_second_ratio` and `peak_memory_ratio` are ours divided by theirs. If the script or `ours` fails, nothing is written.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from harness import command
from harness.session_memory import SessionMemory
from harness.training_task import SHAPES, write_workspace

CPU_SHAPES, GPU_SHAPES = ("toy", "sd15-quarter"), ("sd15-256", "sd15-512")
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {"ours": {}, "ours, one process": {"processes": 1}, "ours, small": {"processes": 1, "gradient_checkpointing": True}},
    "cuda": {
        "ours": {},
        "ours, small": {"gradient_checkpointing": True, "ema_device": "cpu"},
        "ours, compiled": {"compile": True},
        "ours, LoRA": {"gradient_checkpointing": True, "lora": {"rank": 64}},
    },
}
"""Measured settings; `ours` is used for the speed ratio, `ours, small` for the memory ratio."""
PUBLISHED = "published"
"""Name of diffusers' script in the results."""
URL = (
    "https://raw.githubusercontent.com/huggingface/diffusers/"
    f"v{metadata.version('diffusers')}/examples/instruct_pix2pix/train_instruct_pix2pix.py"
)
"""The script of the installed version; that of the main branch requires a version that is not released."""


def run(module: str, out: Path, *arguments: str) -> dict[str, Any]:
    """Run a module of the harness in a separate process and read its results. A failure is a result too.

    On a CPU, `peak_memory_gib` is that of all its processes (`SessionMemory`).
    """
    process = subprocess.Popen(
        [sys.executable, "-m", f"harness.{module}", *arguments], cwd=command.ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=command.environment_without_mlflow() | {"PYTHONPATH": os.pathsep.join(_python_path())},
    )  # fmt: skip
    try:
        with SessionMemory(process) as memory:
            _, errors = process.communicate()
    finally:
        if process.poll() is None:  # this script was interrupted
            os.killpg(process.pid, signal.SIGKILL)
    if out.exists():
        figures: dict[str, Any] = {"peak_memory_gib": memory.peak_gib} | json.loads(out.read_text())
        return {key: round(value, 3) for key, value in figures.items()}
    lines = errors.strip().splitlines()
    print(errors, file=sys.stderr)
    return {"failed": lines[-1][:300] if lines else f"exit status {process.returncode}"}


def _python_path() -> list[str]:
    paths = [str(command.ROOT / "bench"), str(command.ROOT)]
    return [*paths, path] if (path := os.environ.get("PYTHONPATH")) else paths


def measure(
    name: str, published: Path, folder: Path, dtype: str, steps: int, warm_up: int, systems: Sequence[str]
) -> dict[str, Any]:
    """The published script and some systems of `OURS` on one shape."""
    shape, device = SHAPES[name], "cuda" if torch.cuda.is_available() else "cpu"
    write_workspace(folder, shape, device)
    torch.cuda.empty_cache()
    out = folder / f"{PUBLISHED}.json"
    arguments = (published, folder, out, dtype, steps, warm_up, shape.batch, shape.size_px)
    rows: dict[str, Any] = {PUBLISHED: run("published_trainer", out, *map(str, arguments))}
    print(f"{name}: {PUBLISHED}: {rows[PUBLISHED]}", file=sys.stderr, flush=True)
    common = {
        "preset": None, "resolution": shape.size_px, "batch_size": shape.batch, "dtype": dtype, "lr": 1e-4, "lr_mult_text": 0.0,
        "device": device,
    }  # fmt: skip
    for system in systems:
        changes = OURS[device][system]
        out = folder / f"{system}.json"
        shutil.rmtree(folder / "scratch", ignore_errors=True)  # each encodes the pairs itself
        rows[system] = run("emuedit_trainer", out, str(folder), str(out), str(steps), str(warm_up), json.dumps(common | changes))
        print(f"{name}: {system}: {rows[system]}", file=sys.stderr, flush=True)
    return {"batch": shape.batch, "size_px": shape.size_px, "dtype": dtype, "systems": rows, **ratios(rows)}


def ratios(rows: dict[str, Any]) -> dict[str, float | None]:
    """Ratio of ours to the published script, in speed and in memory."""

    def ratio(system: str, key: str) -> float | None:
        value, published = rows.get(system, {}).get(key), rows[PUBLISHED].get(key)
        return round(value / published, 3) if value and published else None

    return {
        "samples_per_second_ratio": ratio("ours", "samples_per_second"),
        "peak_memory_ratio": ratio("ours, small", "peak_memory_gib"),
    }


def require_success(shapes: dict[str, Any]) -> None:
    """Exit with the errors if a measurement that the ratio of the speeds needs has failed."""
    rows = {f"{name}: {system}": figures["systems"][system] for name, figures in shapes.items() for system in (PUBLISHED, "ours")}
    if failed := [f"{name}: {row['failed']}" for name, row in rows.items() if "failed" in row]:
        sys.exit(f"want measurements of {PUBLISHED} and ours, got errors; correct their cause\n" + "\n".join(failed))


def main() -> None:
    """Measure, write, print."""
    parser = command.argument_parser(__doc__, quick="few steps of the published script and `ours` in the toy shape: a smoke test")
    parser.add_argument("--published", type=Path, required=True, metavar="FILE", help="diffusers' train_instruct_pix2pix.py")
    parser.epilog = f"FILE: {URL}"
    parser.add_argument("--shapes", metavar="A,B", help=f"out of {', '.join(SHAPES)}; default: those for this machine")
    parser.add_argument("--steps", type=int, help="steps of each system")
    args = parser.parse_args()
    if not args.published.is_file():
        sys.exit(f"want diffusers' train_instruct_pix2pix.py, got {args.published}, which is not a file; download {URL}")
    has_gpu = torch.cuda.is_available()
    names = args.shapes.split(",") if args.shapes else list(GPU_SHAPES if has_gpu else CPU_SHAPES)[: 1 if args.quick else None]
    steps, warm_up = (args.steps or (8 if args.quick else 40)), 4 if args.quick else 12
    dtype = "bfloat16" if has_gpu else "float32"
    systems = ("ours",) if args.quick else tuple(OURS["cuda" if has_gpu else "cpu"])
    settings = (dtype, steps, warm_up, systems)
    with tempfile.TemporaryDirectory() as folder:
        shapes = {name: measure(name, args.published.resolve(), Path(folder, name), *settings) for name in names}
    require_success(shapes)
    last = shapes[names[-1]]
    keys = ("samples_per_second_ratio", "peak_memory_ratio")
    figures = {**{key: last[key] for key in keys}, "shape": names[-1], "shapes": shapes}
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
