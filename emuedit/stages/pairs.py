"""Stage `pairs`: generate the images before and after each edit under soft masks, with all raw scores. Nothing is filtered.

In: `data/instructions`. Out: `data/pairs/shard-*.parquet` of Pair (every generated candidate), `dropped-*.parquet` of Drop,
`summary.json`, and `bandit.json` if a bandit chose the candidates. Instructions with the same source image are in the same shard
and generate or read it once. Shards are the unit of work: any worker can make any shard, in any order, with the same result.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from emuedit import config
from emuedit.data.dependencies import files_below, work_key
from emuedit.data.publish import Summary, publish, read_folder, scratch_folder, shard_path, write_with_drops
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.data.shards import read_fields
from emuedit.processes import prepare_workers
from emuedit.progress import Progress
from emuedit.runtime import Device, Dtype, Runtime
from emuedit.stages import batch_divisor, halved, stage_main
from emuedit.synthesis import strategy
from emuedit.synthesis.candidate import SynthesisParams, source_key
from emuedit.synthesis.model_set import MODELS, ModelSet
from emuedit.synthesis.recipes import recipes_for
from emuedit.synthesis.shard_maker import IN, make_shard
from emuedit.synthesis.strategy import TrialCounts
from emuedit.synthesis.worker_pool import (
    LocalWorkers,
    Work,
    Workers,
    choose_runtime,
    connection,
    count_processes,
    worker_pool,
)

OUT, TRIALS_FILE = "data/pairs", "bandit.json"
WORKER_MODULES = (
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "open_clip", "segment_anything",
    "emuedit.synthesis.model_set",
)  # fmt: skip
"""Slow imports of the workers."""
HEADLINE = "{pairs} pairs generated, {dropped} instructions without a pair"


class PairsError(ValueError):
    """Raised if no pair can be generated."""


class PairsParams(SynthesisParams):
    """Params of the stage."""

    device: Device = "auto"
    """Device of the networks: auto, cuda, mps or cpu, or a GPU with its number, such as cuda:1. With workers of kind ray, the
    devices of the cluster count, without a number."""
    dtype: Dtype = "auto"
    """Number format of the base model: auto, float32, bfloat16 or float16."""
    instructions_per_shard: int = Field(48, ge=1)
    """Instructions per shard, the unit of work for restarts."""
    workers: Workers = LocalWorkers()
    """Workers that make the shards; they do not affect the result."""

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, workers: Workers, fields: ValidationInfo) -> Workers:
        device = fields.data.get("device", "auto")  # absent if it is invalid
        if ":" in device and not isinstance(workers, LocalWorkers):
            raise ValueError(
                "want a device without a number for workers of kind ray, since Ray gives every actor a GPU, got "
                f"{device!r}; set device: {device.split(':')[0]}"
            )
        return workers


@dataclass(frozen=True)
class ShardJob:
    """A shard to make: output, instructions, and trial counts of earlier rounds."""

    path: Path
    instructions: list[Instruction]
    trial_counts: TrialCounts


def group_by_source(instructions: Sequence[Instruction], per_shard: int) -> list[list[Instruction]]:
    """Shards of instructions; those with the same source image stay together. Independent of the input order."""
    groups: dict[tuple[str, str], list[Instruction]] = defaultdict(list)
    for instruction in sorted(instructions, key=lambda instruction: (source_key(instruction), instruction.id)):
        groups[source_key(instruction)].append(instruction)
    shards: list[list[Instruction]] = [[]]
    for group in groups.values():
        if len(shards[-1]) >= per_shard:
            shards.append([])
        shards[-1] += group
    return shards


def run(params: PairsParams, root: Path) -> Summary:
    """Make the shards that are not in scratch, publish to `data/pairs`."""
    root = root.resolve()  # remote workers have another working folder
    instructions = list(read_folder(root / IN, Instruction))
    if not instructions:
        raise PairsError(f"want instructions in {root / IN}, got none; run the stage instructions")
    with connection(params.workers):
        runtime = choose_runtime(params.workers, params.device, params.dtype)
        return _make_shards(params, root, instructions, runtime)


def _make_shards(params: PairsParams, root: Path, instructions: list[Instruction], runtime: Runtime) -> Summary:
    recorded = params.model_dump(mode="json", exclude={"workers", "device"}) | {"dtype": runtime.dtype}
    models = [config.resolve_path(getattr(params.world, name), root) for name in MODELS]
    workers = _with_fewer_processes(params.workers, runtime.device, _weights_bytes(models))
    if isinstance(workers, LocalWorkers) and workers.processes > 1:
        prepare_workers(runtime.device, WORKER_MODULES)
    changes_the_result = recorded | {"rows_per_batch": None}
    scratch = scratch_folder(root, "pairs", work_key("pairs", changes_the_result, root, *models), changes_the_result)
    shards = group_by_source(instructions, params.instructions_per_shard)
    paths = [shard_path(scratch, number) for number in range(len(shards))]
    n_pairs = {path.name: sum(_expected_pairs(row, params) for row in rows) for path, rows in zip(paths, shards, strict=True)}
    costs = {path.name: params.estimate_cost(rows) for path, rows in zip(paths, shards, strict=True)}
    done, done_cost = (sum(amounts[path.name] for path in paths if path.exists()) for amounts in (n_pairs, costs))
    print(f"pairs: {len(instructions)} instructions in {len(shards)} shards, {runtime}", flush=True)
    trial_counts: TrialCounts = Counter()
    cost = sum(costs.values())
    with Progress("pairs", sum(n_pairs.values()), "pair", done, cost=cost, done_cost=done_cost) as progress:
        shares: Counter[str] = Counter()
        n_dropped = 0
        progress.advance(0, note="workers load their models")

        def report(name: str, share: float) -> None:
            share = min(share, 1 - shares[name])  # a shard's shares are estimates
            shares[name] += share  # type: ignore[assignment]
            progress.advance(share * n_pairs[name], note=f"{n_dropped} dropped", cost=share * costs[name])

        build = partial(_build_work, _with_smaller_batches(params), root, scratch, runtime)
        with worker_pool(workers, build, runtime.device, report) as pool:
            for numbers in strategy.shard_rounds(params.strategy, len(shards)):
                missing = [number for number in numbers if not paths[number].exists()]
                jobs = {paths[n].name: ShardJob(paths[n], shards[n], trial_counts) for n in missing}
                for name, drops in pool(jobs):
                    n_dropped += drops
                    report(name, 1 - shares[name])
                trial_counts = trial_counts + strategy.count_trials(params.strategy, [paths[number] for number in numbers])
    if trial_counts:
        (scratch / TRIALS_FILE).write_text(strategy.describe_trials(trial_counts), encoding="utf-8")
    counts = _count(scratch)
    if not counts["pairs"]:
        raise PairsError(f"want at least one pair, got {dict(counts)}; see {scratch}/dropped-*.parquet")
    return publish(scratch, root / OUT, "pairs", recorded, counts)


def _build_work(params: PairsParams, root: Path, scratch: Path, runtime: Runtime) -> Work[ShardJob, int]:
    """A function that makes a shard and returns its number of drops; called once per worker, so models stay loaded."""
    if not scratch.is_dir():
        raise PairsError(f"want the folder {scratch} on every worker's machine, got none here; share the project's folder")
    models = ModelSet(params.world, root, runtime)

    def make(job: ShardJob, report: Callable[[float], None]) -> int:
        pairs, drops = make_shard(job.instructions, models, params, job.trial_counts, report)
        write_with_drops(job.path, pairs, drops, Pair)
        return len(drops)

    return make


def _with_fewer_processes(workers: Workers, device: str, weights_bytes: int | None) -> Workers:
    """The workers with their number of processes; after running out of a machine's memory, half of the processes."""
    if not isinstance(workers, LocalWorkers):
        return workers
    processes = count_processes(workers, device, weights_bytes)
    if device == "cpu" and batch_divisor() > 1:
        before, processes = halved(processes)
        if processes < before:
            print(f"pairs: ran out of memory with {before} processes; retrying with {processes}", flush=True)
    return workers.model_copy(update={"processes": processes})


def _with_smaller_batches(params: PairsParams) -> PairsParams:
    """After running out of memory: halve the images per batch. One candidate and its source still share a forward pass."""
    if batch_divisor() == 1:
        return params
    before, fewer = halved(params.rows_per_batch)
    if before == 1:
        advice = "set pairs.workers: {kind: local, processes: 1}, or a smaller dtype or base model"
        print(
            f"pairs: ran out of memory with one image per batch, which cannot be halved; retrying unchanged; {advice}", flush=True
        )
    else:
        print(
            f"pairs: ran out of memory with {before} images per batch; retrying with {fewer}; a candidate is still generated "
            "together with its source",
            flush=True,
        )
    return params.model_copy(update={"rows_per_batch": fewer})


def _weights_bytes(models: Sequence[str]) -> int | None:
    """Size of the models on disk; None if one is a hub id, whose size is unknown."""
    if not all(Path(model).exists() for model in models):
        return None
    return sum(file.stat().st_size for model in models for file in files_below(Path(model)))


def _count(scratch: Path) -> Counter[str]:
    """Pairs, pairs of each task, drops, and drops for each reason, of all shards."""
    counts: Counter[str] = Counter()
    for path in sorted(scratch.glob("shard-*.parquet")):
        tasks = read_fields(path, Pair, "task")["task"].to_pylist()
        counts["pairs"] += len(tasks)
        counts.update(f"pairs_{task}" for task in tasks)
    for path in sorted(scratch.glob("dropped-*.parquet")):
        reasons = read_fields(path, Drop, "reason")["reason"].to_pylist()
        counts["dropped"] += len(reasons)
        counts.update(f"dropped_{reason}" for reason in reasons)
    return counts


def _expected_pairs(instruction: Instruction, params: PairsParams) -> int:
    return strategy.n_candidates(params.strategy, len(recipes_for(params.recipes, instruction.task))) or 1


if __name__ == "__main__":
    stage_main("pairs")
