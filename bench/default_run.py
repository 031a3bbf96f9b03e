"""How long does the default job take, by stage? Optionally compared with an older checkout.

`uv run python bench/default_run.py [--quick]` writes `bench/results/default_run.json`; its last line is the same JSON.

Every stage of `dvc.yaml` runs once, with the params of `params.yaml`, like `uv run retrain` but without DVC and the flow. With
`--before FOLDER`, each stage of the checkout in FOLDER runs in the same invocation, and the checkouts alternate in running first;
`ratio` is the seconds before divided by the seconds after. Counts show the output of a stage, so that a faster run is not a
smaller one. `load_before` is the load of the machine before the first stage: above 0.5 it was not idle.

Each checkout has a workspace below `--workspace`, with the data of its earlier stages. Stages that were measured there are not
repeated without `--force`, so the same command resumes an interrupted run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import command
from harness.stage_runs import StageRunner, dtype_changes

DTYPES = ("auto", "float32", "bfloat16")
QUICK_CHANGES: dict[str, Any] = {
    "captions.n_rows": 40,
    "instructions.tasks": ["remove", "detect"],
    "instructions.n_captions": 4,
    "pairs.steps": 4,
    "router.epochs": 1,
    "train.steps": 2,
    "train.batch_size": 4,
    "train.batch": 4,
    "inversion.steps": 2,
    "inversion.n_examples": 4,
    "inversion.n_held_out": 2,
    "evaluation.tasks": ["remove", "detect", "contour"],
    "evaluation.n_edits": 1,
    "evaluation.settings.steps": 2,
    "evaluation.steps": 2,
}
"""Params of `--quick`. Some have two names: the current one, and one of earlier versions."""
QUICK_STAGES = ("captions", "instructions", "pairs", "router")
"""Stages of `--quick` without `--stages`."""
WARM_UP = "import accelerate, diffusers, mlflow, open_clip, torch, transformers"
"""Imports that load the libraries into the page cache, so that the first stage does not include that time."""


def run_stages(runners: dict[str, StageRunner], stages: Sequence[str], force: bool) -> dict[str, Any]:
    """Measure every stage of every checkout, alternately; returns stage -> checkout -> measurement, and the ratio."""
    rows: dict[str, Any] = {}
    for number, stage in enumerate(stages):
        sides = list(runners) if number % 2 == 0 else list(reversed(runners))
        rows[stage] = {}
        for side in sides:
            row = runners[side].measure(stage, force)
            rows[stage][side] = row
            print(f"default_run: {stage} {side}: {row['seconds']:.1f} s", file=sys.stderr, flush=True)
        rows[stage] = with_ratio({side: rows[stage][side] for side in runners}, "seconds")
    return rows


def total(rows: dict[str, Any], sides: Sequence[str]) -> dict[str, Any]:
    """The minutes of all measured stages together."""
    minutes = {side: {"minutes": round(sum(row[side]["seconds"] for row in rows.values()) / 60, 2)} for side in sides}
    return with_ratio(minutes, "minutes")


def with_ratio(row: dict[str, Any], key: str) -> dict[str, Any]:
    """The row with `ratio`, the time before over the time after, if both were measured."""
    if "before" not in row or not row["after"][key]:
        return row
    return row | {"ratio": round(row["before"][key] / row["after"][key], 2)}


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = command.argument_parser(
        __doc__, quick="few captions, steps and stages: a smoke test without meaningful measurements"
    )
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="an older checkout to compare with")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="number format of all stages of both checkouts; default: as in params.yaml"
    )
    parser.add_argument(
        "--stages",
        metavar="A,B,C",
        help="only these stages, separated by commas; default: all, with --quick the first four",
    )
    parser.add_argument("--force", action="store_true", help="repeat stages that were measured already")
    parser.add_argument(
        "--workspace", type=Path, metavar="FOLDER",
        help="folder for the workspaces; default: scratch/bench/default_run-<dtype>, with --quick a temporary folder",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    """Prepare the workspaces, measure, write, print."""
    args = parse_arguments()
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        workspace = args.workspace or command.ROOT / "scratch" / "bench" / f"default_run-{args.dtype or 'as_shipped'}"
        if args.quick and args.workspace is None:
            workspace = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkouts = ({"before": args.before} if args.before else {}) | {"after": command.ROOT}
        runners = {side: StageRunner(code.resolve(), workspace.resolve() / side) for side, code in checkouts.items()}
        stages = args.stages.split(",") if args.stages else list(QUICK_STAGES if args.quick else runners["after"].stages)
        for side, runner in runners.items():
            if unknown := [stage for stage in stages if stage not in runner.stages]:
                sys.exit(f"want stages from {', '.join(runner.stages)}; got {', '.join(unknown)} for the checkout {side}")
            runner.prepare((QUICK_CHANGES if args.quick else {}) | dtype_changes(args.dtype))
        if not args.quick:
            subprocess.run([sys.executable, "-c", WARM_UP], check=True)
        rows = run_stages(runners, stages, args.force)
    figures = {
        "dtype": args.dtype or "as in params.yaml", "load_before": round(load, 2), "stages": rows,
        "total": total(rows, list(runners)),
    }  # fmt: skip
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
