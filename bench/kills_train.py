"""Does a training, killed at a random time and repeated, end with bit-identical weights?

`uv run python bench/kills_train.py [--quick]` writes `bench/results/kills_train.json`; its last line is the same JSON.

The toy base model is trained on a few exact pairs by the command of the stage `train`, once undisturbed with one process and once
with two. Then, for each kill, the same training runs again: at a seeded random time, a process gets SIGKILL, and the command is
repeated until it succeeds. If training processes are running, a random one of them is killed, else the command itself. The time
is between start and end of the command; for every second kill of two processes, it is after the training processes have started.
`identical` counts the runs of `kills` whose weight files equal those of the undisturbed run with as many processes, and
`ranks_killed` the kills of a training process; without any, the script fails. A run that ended before its kill time is repeated,
with earlier times. `--quick`, about a minute, has one kill of one process. Linux only.
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
POLL_S = 0.05
_EARLIER = 0.8
"""Factor of the kill times after a run that ended before its kill."""
PAIRS = {"local": 8, "remove": 8}


@dataclass(frozen=True)
class Moment:
    """The time of a kill."""

    seconds: float
    after_ranks: bool
    """Whether the time counts from when all training processes run, instead of from the start of the command."""


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


def run_undisturbed(root: Path, processes: int) -> tuple[float, float]:
    """(seconds of the command, seconds for which all training processes run). Exits if the training fails."""
    running, began = killing.start(root, STAGE), time.monotonic()
    times = [0.0]  # at which all run
    while running.poll() is None:
        if processes > 1 and len(killing.forked_workers(running.pid)) == processes:
            times.append(time.monotonic())
        time.sleep(POLL_S)
    if running.returncode:
        sys.exit(f"the undisturbed training failed:\n{(root / 'log').read_text()}")
    return time.monotonic() - began, times[-1] - times[min(1, len(times) - 1)]


def kill_once(root: Path, processes: int, moment: Moment, chance: random.Random, expected: dict[str, str]) -> KilledRun | None:
    """A run with a kill, repeated until it finishes; None if the command or the training processes ended before the kill time."""
    running, began = killing.start(root, STAGE), time.monotonic()
    while moment.after_ranks and running.poll() is None and len(killing.forked_workers(running.pid)) < processes:
        time.sleep(POLL_S)
    try:
        running.wait(moment.seconds)
        return None
    except subprocess.TimeoutExpired:
        ranks = killing.forked_workers(running.pid)
    if moment.after_ranks and not ranks:  # they ended earlier than in the undisturbed run
        killing.kill(running, running.pid)
        return None
    victim, phase = chance.choice(ranks) if ranks else running.pid, phase_of(root)
    moment_s = time.monotonic() - began
    n_left = killing.kill(running, victim)
    repeats = killing.repeat_until_done(root, STAGE)
    name = f"rank {ranks.index(victim)}" if ranks else "command"
    return KilledRun(processes, round(moment_s, 2), phase, name, n_left, repeats, weight_hashes(root) == expected)


def measure(folder: Path, processes: int, kills: int, quick: bool) -> dict[str, Any]:
    """The undisturbed run, and all kills of trainings with this number of processes."""
    root = prepare(folder / "undisturbed", folder / "pairs", processes, quick)
    seconds, training_s = run_undisturbed(root, processes)
    expected = weight_hashes(root)
    chance = random.Random(seed_for("bench", "kills_train", processes))
    runs: list[KilledRun] = []
    n_missed, durations = 0, {False: seconds, True: training_s}  # by `Moment.after_ranks`
    progress = tqdm(total=kills, desc=f"kills of {processes} processes", unit="kill")
    while len(runs) < kills:
        after_ranks = processes > 1 and len(runs) % 2 == 1
        share = (len(runs) + chance.random()) / kills  # stratified over the duration
        root = prepare(folder / "killed", folder / "pairs", processes, quick)
        run = kill_once(root, processes, Moment(share * durations[after_ranks], after_ranks), chance, expected)
        if run is None:
            n_missed += 1
            durations[after_ranks] *= _EARLIER
            continue
        runs.append(run)
        progress.update()
        print(f"{run}{'' if run.identical else (root / 'log').read_text()}", file=sys.stderr, flush=True)
    progress.close()
    return {"seconds_undisturbed": round(seconds, 1), "ended_before_the_kill": n_missed, "runs": [asdict(run) for run in runs]}


def main() -> None:
    """Measure, write, print. Exits with status 1 if no training process was killed, except with `--quick`."""
    args = command.argument_parser(__doc__, quick="one kill of one process and a few steps").parse_args()
    kills = {1: 1} if args.quick else {1: 10, 2: 10}
    with tempfile.TemporaryDirectory() as folder:
        exact_dataset.write_dataset(Path(folder, "pairs"), PAIRS)
        by_processes = {str(n): measure(Path(folder), n, count, args.quick) for n, count in kills.items()}
    runs = [run for figures in by_processes.values() for run in figures["runs"]]
    figures = {
        "identical": sum(run["identical"] for run in runs),
        "kills": len(runs),
        "ranks_killed": sum(run["victim"].startswith("rank") for run in runs),
        "processes_left": sum(run["n_left"] for run in runs),
        "phases": dict(Counter(run["phase"] for run in runs)),
        "by_processes": by_processes,
    }
    command.write_result(__file__, figures, args)
    if not figures["ranks_killed"] and not args.quick:
        sys.exit("want a kill of a training process, got none: kills of two processes do not test what they should")


if __name__ == "__main__":
    main()
