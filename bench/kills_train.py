"""Does a training, killed at a random time and repeated, end with bit-identical weights?

`uv run python bench/kills_train.py [--quick]` writes `bench/results/kills_train.json`; its last line is the same JSON.

The toy base model is trained on a few exact pairs by the command of the stage `train`, once undisturbed with one process and once
with two. Then, for each kill, the same training runs again: at a seeded random time between start and end of the command, a
process gets SIGKILL, and the command is repeated until it succeeds. If training processes are running, a random one of them is
killed, else the command itself. `identical` counts the runs of `kills` whose weight files equal those of the undisturbed run with
as many processes. A run that ended before its kill time is repeated, with earlier times. Linux only.
"""

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

from emuedit.runtime import seed_for
from emuedit.stages import train
from toyworld.edits import exact_dataset

SETTINGS: dict[str, Any] = {
    "steps": 12, "batch_size": 4, "dtype": "float32", "device": "cpu", "warmup_steps": 2, "save_every_s": 0.3,
    "start": "base_model", "log_every_steps": 1, "eval_every_steps": 6, "held_out_share": 0.2, "preview": None,
}  # fmt: skip
QUICK_STEPS = 4
STAGE = "train"
PAIRS = {"local": 8, "remove": 8}


@dataclass(frozen=True)
class KilledRun:
    """The result of one kill."""

    processes: int
    moment_s: float
    """Seconds since the start of the command."""
    phase: str
    """Phase of the command: starting, encoding, training, saving or publishing."""
    victim: str
    """`command`, or the rank of a training process."""
    n_left: int
    """Processes still alive `killing.ENDING_S` after the kill."""
    repeats: int
    identical: bool


def prepare(root: Path, pairs: Path, processes: int, quick: bool) -> Path:
    """A workspace with the pairs of a folder and params, without a training."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(pairs, root)
    params = yaml.safe_load((command.ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["world"] |= {"base_model": str(command.ROOT / params["world"]["base_model"]), "base_editor": None}
    params["train"] |= SETTINGS | {"processes": processes} | ({"steps": QUICK_STEPS} if quick else {})
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return root


def weight_hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every published weight file."""
    return killing.file_hashes(root / train.OUT, "*.safetensors")


def training_processes(session: int) -> list[int]:
    """The processes started by `run_distributed`, by rank."""
    return [process for process, words in killing.session_processes(session).items() if "--multiprocessing-fork" in words]


def phase_of(root: Path) -> str:
    """The phase of a training, determined from its files."""
    scratch = root / "scratch"
    if (root / train.OUT).exists():
        return "publishing"
    if list(scratch.glob("train/*/.*.part.*")):
        return "saving"
    if list(scratch.glob("train/*")):
        return "training"
    return "encoding" if (scratch / "latents").exists() else "starting"


def kill_once(root: Path, processes: int, moment_s: float, chance: random.Random, expected: dict[str, str]) -> KilledRun | None:
    """A run with a kill, repeated until it finishes; None if the command ended before the kill time."""
    running = killing.start(root, STAGE)
    try:
        running.wait(moment_s)
        return None
    except subprocess.TimeoutExpired:
        ranks = training_processes(running.pid)
    rank = chance.randrange(processes) if ranks else None
    victim, phase = running.pid if rank is None else ranks[min(rank, len(ranks) - 1)], phase_of(root)
    n_left = killing.kill(running, victim)
    repeats = killing.repeat_until_done(root, STAGE)
    name = "command" if rank is None else f"rank {ranks.index(victim)}"
    return KilledRun(processes, round(moment_s, 2), phase, name, n_left, repeats, weight_hashes(root) == expected)


def measure(folder: Path, processes: int, kills: int, quick: bool) -> dict[str, Any]:
    """The undisturbed run, and all kills of trainings with this number of processes."""
    root = prepare(folder / "undisturbed", folder / "pairs", processes, quick)
    began = time.monotonic()
    if not killing.finish(root, STAGE):
        sys.exit(f"the undisturbed training failed:\n{(root / 'log').read_text()}")
    seconds, expected = time.monotonic() - began, weight_hashes(root)
    chance = random.Random(seed_for("bench", "kills_train", processes))
    runs: list[KilledRun] = []
    n_missed, duration_s = 0, seconds
    progress = tqdm(total=kills, desc=f"kills of {processes} processes", unit="kill")
    while len(runs) < kills:
        moment_s = duration_s * (len(runs) + chance.random()) / kills  # stratified over the duration
        root = prepare(folder / "killed", folder / "pairs", processes, quick)
        began = time.monotonic()
        run = kill_once(root, processes, moment_s, chance, expected)
        if run is None:
            n_missed, duration_s = n_missed + 1, min(duration_s, time.monotonic() - began)
            continue
        runs.append(run)
        progress.update()
        print(f"{run}{'' if run.identical else (root / 'log').read_text()}", file=sys.stderr, flush=True)
    progress.close()
    return {"seconds_undisturbed": round(seconds, 1), "ended_before_the_kill": n_missed, "runs": [asdict(run) for run in runs]}


def main() -> None:
    """Measure, write, print."""
    args = command.argument_parser(__doc__, quick="two kills of one process and a few steps").parse_args()
    kills = {1: 2} if args.quick else {1: 10, 2: 10}
    with tempfile.TemporaryDirectory() as folder:
        exact_dataset.write_dataset(Path(folder, "pairs"), PAIRS)
        by_processes = {str(n): measure(Path(folder), n, count, args.quick) for n, count in kills.items()}
    runs = [run for figures in by_processes.values() for run in figures["runs"]]
    figures = {
        "identical": sum(run["identical"] for run in runs),
        "kills": len(runs),
        "processes_left": sum(run["n_left"] for run in runs),
        "phases": dict(Counter(run["phase"] for run in runs)),
        "by_processes": by_processes,
    }
    command.write_result(__file__, figures, args.quick)


if __name__ == "__main__":
    main()
