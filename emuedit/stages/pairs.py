"""Station `pairs`: instructions -> before/after pictures under soft masks, with every raw score. Nothing is judged here.

In: `data/instructions`. Out: `data/pairs/shard-*.parquet` of Pair (every candidate that was painted), `dropped-*.parquet` of
Drop, `summary.json`, and `strategy.json` where a bandit chose the candidates. Instructions that share their first picture share a
shard and paint it once. Shards are the unit of work: any worker makes any of them, in any order, with the same bytes on
machines alike and as many threads.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import Field
from tqdm import tqdm

from emuedit import config
from emuedit.data import filters
from emuedit.data.publish import Summary, fingerprint, publish, read_folder, scratch_folder
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.data.shards import write_shard
from emuedit.runtime import Runtime
from emuedit.synthesis import model_set, strategy
from emuedit.synthesis import worker_pool as workers
from emuedit.synthesis.candidate import IN, SynthesisParams, first_caption, make_shard
from emuedit.synthesis.strategy import TrialCounts
from emuedit.synthesis.worker_pool import Workers

OUT, LEARNED = "data/pairs", "bandit.json"


class PairsError(ValueError):
    """Raised for instructions of which no pair can be made."""


class PairsParams(SynthesisParams):
    """SynthesisParams of the station."""

    device: str
    """Where networks run: auto, cuda, mps or cpu."""
    dtype: str
    """Number format of the base_model: auto, float32, bfloat16 or float16."""
    instructions_per_shard: int = Field(ge=1)
    """A shard is closed when it holds this many; the unit of work that a restart does not repeat."""
    workers: Workers
    """Who makes the shards; changes no result."""


@dataclass(frozen=True)
class Job:
    """A shard to make: where, of what, and what earlier rounds have shown."""

    path: Path
    instructions: list[Instruction]
    trial_counts: TrialCounts


def shards(instructions: Sequence[Instruction], per_shard: int) -> list[list[Instruction]]:
    """Instructions by first caption; those that share one stay together. The order they came in does not matter."""
    groups: dict[str, list[Instruction]] = defaultdict(list)
    for one in sorted(instructions, key=lambda one: (first_caption(one), one.id)):
        groups[first_caption(one)].append(one)
    made: list[list[Instruction]] = [[]]
    for group in groups.values():
        if len(made[-1]) >= per_shard:
            made.append([])
        made[-1] += group
    return made


def run(params: PairsParams, root: Path) -> Summary:
    """Make the shards that an earlier run did not leave in scratch, publish to `data/pairs`."""
    root = root.resolve()  # a worker elsewhere stands in another folder
    instructions = list(read_folder(root / IN, Instruction))
    if not instructions:
        raise PairsError(f"want instructions in {root / IN}, got none; run the station instructions")
    knobs = params.model_dump(mode="json", by_alias=True, exclude={"workers"})
    here = Path(__file__).parent
    code = [path for part in ("core", "models", "rivals", "synthesis") for path in sorted((here / part).glob("*.py"))]
    behind = [*sorted((root / IN).glob("shard-*.parquet")), *model_set.files(params.world, root), Path(__file__), *code]
    scratch = scratch_folder(root, "pairs", fingerprint(knobs, *behind, Path(filters.__file__)))
    work = shards(instructions, params.instructions_per_shard)
    paths = [scratch / f"shard-{number:05d}.parquet" for number in range(len(work))]
    amount = {path.name: sum(_expected(one, params) for one in some) for path, some in zip(paths, work, strict=True)}
    there = sum(amount[path.name] for path in paths if path.exists())
    trial_counts: TrialCounts = Counter()
    dropped = 0
    with (
        workers.hired(params.workers, partial(_workshop, params, root, scratch), params.device) as team,
        tqdm(total=sum(amount.values()), initial=there, unit="pair", desc="pairs") as bar,
    ):
        for part in strategy.rounds(params.strategy, len(work)):
            todo = [number for number in part if not paths[number].exists()]
            for name, lost in team({paths[number].name: Job(paths[number], work[number], trial_counts) for number in todo}):
                dropped += lost
                bar.set_postfix(dropped=dropped, refresh=False)
                bar.update(amount[name])
            trial_counts = trial_counts + strategy.outcome(params.strategy, [paths[number] for number in part])
    if trial_counts:
        (scratch / LEARNED).write_text(strategy.told(trial_counts), encoding="utf-8")
    counts = _counts(scratch)
    if not counts["pairs"]:
        raise PairsError(f"want at least one pair, got {dict(counts)}; see {scratch}/dropped-*.parquet")
    return publish(scratch, root / OUT, "pairs", knobs, counts)


def _workshop(params: PairsParams, root: Path, scratch: Path) -> Callable[[Job], int]:
    """What makes shards and says how much it dropped, once on every worker: the models stay loaded."""
    if not scratch.is_dir():
        raise PairsError(f"want the folder {scratch} on every machine that makes shards, got none here; share the project's")
    models = model_set.ModelSet(params.world, root, Runtime.choose(params.device, params.dtype), params.steps)

    def make(job: Job) -> int:
        pairs, drops = make_shard(job.instructions, models, params, job.trial_counts)
        write_shard(job.path.with_name(job.path.name.replace("shard", "dropped")), drops, Drop)
        write_shard(job.path, pairs, Pair)  # after its drops: where it is, both are
        return len(drops)

    return make


def _counts(scratch: Path) -> Counter[str]:
    """Pairs, pairs of each task, and drops for each reason, of all shards."""
    counts: Counter[str] = Counter()
    for path in sorted(scratch.glob("shard-*.parquet")):
        tasks = pq.read_table(path, columns=["task"])["task"].to_pylist()
        counts["pairs"] += len(tasks)
        counts.update(f"pairs_{task}" for task in tasks)
    for path in sorted(scratch.glob("dropped-*.parquet")):
        counts.update(f"dropped_{reason}" for reason in pq.read_table(path, columns=["reason"])["reason"].to_pylist())
    return counts


def _expected(one: Instruction, params: PairsParams) -> int:
    return strategy.amount(params.strategy, len(params.recipes.of(one.task))) or 1


if __name__ == "__main__":
    pairs = import_module("emuedit.stages.pairs")  # by the name under which a worker elsewhere finds it, which is not __main__
    pairs.run(config.load(pairs.PairsParams, "pairs"), Path())
