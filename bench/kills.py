"""Does each stage, killed at a random time and repeated, end with bit-identical outputs?

`uv run python bench/kills.py [--quick]` writes `bench/results/kills.json`; its last line is the same JSON. Linux only. Trainings
with two processes are in `bench/kills_train.py`.

The stages of `dvc.yaml` run once, undisturbed, on a few captions. Then, for each kill, one of them runs again on the same inputs:
at a seeded random time between start and end of the command, its process gets SIGKILL, and the command is repeated until it
succeeds. `identical` counts the runs of `kills` whose files equal those of the undisturbed run, except files that contain
times (`VOLATILE`). A run that ended before its kill time is repeated, with earlier times.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from harness import command, killing
from tqdm import tqdm

from emuedit.data.dependencies import SUMMARY_FILE
from emuedit.runtime import seed_for

SETTINGS: dict[str, dict[str, Any]] = {
    "captions": {"n_rows": 24, "rows_per_shard": 12},
    "instructions": {"n_captions": 4, "captions_per_shard": 2},
    "pairs": {"steps": 3, "workers": {"kind": "local", "processes": 1}},
    "router": {"epochs": 1},
    "dataset": {"sheet_pairs": 1},
    "validation": {"reference": None, "on_breach": "warn", "sample_pairs": 8},
    "train": {
        "steps": 6, "batch_size": 4, "processes": 1, "warmup_steps": 1, "eval_every_steps": 3, "held_out_share": 0.0,
        "save_every_s": 0.3, "preview": None,
    },
    "inversion": {"steps": 3, "n_examples": 4, "n_held_out": 2, "batch_size": 2, "eval_every_steps": 3},
    "evaluation": {"n_edits": 2, "settings": {"steps": 2}, "sheet_columns": 2},
}  # fmt: skip
"""The smallest possible job of each stage."""
VOLATILE = ("validation.html",)
"""Files that contain times of the run."""
KILLS, QUICK_STAGES = 100, ("captions", "instructions")


@dataclass(frozen=True)
class KilledRun:
    """The result of one kill."""

    stage: str
    moment_s: float
    """Seconds since the start of the command."""
    share: float
    """Fraction of the duration of the undisturbed run."""
    n_left: int
    """Processes still alive `killing.ENDING_S` after the kill."""
    repeats: int
    identical: bool


def read_outputs() -> dict[str, Path]:
    """Stage -> its output folder, in the order of dvc.yaml."""
    stages = yaml.safe_load((command.ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: Path(stage["outs"][0]) for name, stage in stages.items()}


def prepare(root: Path) -> Path:
    """A workspace with params in which no stage has run."""
    params = yaml.safe_load((command.ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name, value in params["world"].items():
        if isinstance(value, str) and (command.ROOT / value).exists() and not value.endswith(".py"):
            params["world"][name] = str(command.ROOT / value)
    for stage, changes in SETTINGS.items():
        params[stage] |= changes
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return root


def published_files(folder: Path) -> dict[str, Any]:
    """Published files of a stage, by name: hashes, and the summary without the hashes of volatile files.

    Empty for a folder that is not published.
    """
    if not (folder / SUMMARY_FILE).is_file():
        return {}
    summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    summary["shards"] = {name: digest for name, digest in summary["shards"].items() if Path(name).name not in VOLATILE}
    return {**killing.file_hashes(folder, ignored=(*VOLATILE, SUMMARY_FILE)), SUMMARY_FILE: summary}


def _ignore_scratch(folder: str, names: list[str]) -> list[str]:
    """Files to hide from a killed run: scratch of the undisturbed run, except the record of the params check."""
    return [name for name in names if name != "params-check"] if Path(folder).name == "scratch" else []


def kill_once(
    inputs: Path, root: Path, stage: str, moment_s: float, seconds: float, out: Path, expected: dict[str, Any]
) -> KilledRun | None:
    """A run with a kill, repeated until it finishes; None if the command ended before the kill time.

    seconds: duration of the undisturbed run.
    """
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(inputs, root, ignore=_ignore_scratch)
    shutil.rmtree(root / out)
    running = killing.start(root, stage)
    try:
        running.wait(moment_s)
        return None
    except subprocess.TimeoutExpired:
        n_left = killing.kill(running, running.pid)
    repeats = killing.repeat_until_done(root, stage)
    identical = published_files(root / out) == expected
    return KilledRun(stage, round(moment_s, 2), round(moment_s / seconds, 2), n_left, repeats, identical)


def main() -> None:
    """Measure, write, print."""
    parser = command.argument_parser(__doc__, quick="one kill of two stages")
    parser.add_argument("--kills", type=int, default=KILLS, help=f"kills of all stages together (default: {KILLS})")
    args = parser.parse_args()
    outputs = read_outputs()
    stages = QUICK_STAGES if args.quick else tuple(outputs)
    chance = random.Random(seed_for("bench", "kills"))
    seconds: dict[str, float] = {}
    runs: list[KilledRun] = []
    with tempfile.TemporaryDirectory() as temporary:
        inputs = prepare(Path(temporary, "undisturbed"))
        for stage in tqdm(stages, desc="undisturbed", unit="stage"):
            began = time.monotonic()
            if not killing.finish(inputs, stage):
                sys.exit(f"the undisturbed stage {stage} failed:\n{(inputs / 'log').read_text()}")
            seconds[stage] = time.monotonic() - began
        expected = {stage: published_files(inputs / outputs[stage]) for stage in stages}
        limits = dict(seconds)
        n_kills = len(stages) if args.quick else args.kills
        with tqdm(total=n_kills, desc="kills", unit="kill") as progress:
            while len(runs) < n_kills:
                stage = stages[len(runs) % len(stages)]
                moment_s = chance.uniform(0, limits[stage])
                began = time.monotonic()
                arguments = (moment_s, seconds[stage], outputs[stage], expected[stage])
                run = kill_once(inputs, Path(temporary, "killed"), stage, *arguments)
                if run is None:
                    limits[stage] = min(limits[stage], time.monotonic() - began)
                    continue
                runs.append(run)
                progress.update()
                log = "" if run.identical else (Path(temporary, "killed") / "log").read_text()[-2000:]
                print(f"{run}{log}", file=sys.stderr, flush=True)
    figures = {
        "identical": sum(run.identical for run in runs),
        "kills": len(runs),
        "processes_left": sum(run.n_left for run in runs),
        "identical_by_stage": dict(Counter(run.stage for run in runs if run.identical)),
        "seconds_undisturbed": {stage: round(value, 1) for stage, value in seconds.items()},
        "runs": [asdict(run) for run in runs],
    }
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
