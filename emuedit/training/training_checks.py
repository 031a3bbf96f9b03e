"""Checks of a training that need no encoded pairs, so that a training that cannot run fails before hours of encoding."""

from __future__ import annotations

import math
from typing import Any

from emuedit.models.objective import prediction_type_of
from emuedit.tasks import ALL_TASKS
from emuedit.training.batches.aspect_buckets import AspectBuckets
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_cache import check_task_weights, check_tasks, no_training_pairs
from emuedit.training.batches.latent_files import group_seed, held_out_bound
from emuedit.training.distributed import TrainingProcesses, n_passes
from emuedit.training.optim.optimizers import check_optimizer
from emuedit.training.resources import check_memory
from emuedit.training.starting_point import StartError, StartingPoint
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor
from emuedit.training.training_error import TrainingError


def check_settings(settings: TrainSettings, start: StartingPoint, processes: TrainingProcesses) -> None:
    """Check settings that need neither pairs nor weights.

    Raises ValueError for an uneven batch, LatentCacheError for a weight of an unknown task, StartError for a change-mask head
    that would stay untrained, and the errors of `check_processes`. Prints loss weights that have no effect.
    """
    n_passes(settings.batch_size, settings.accumulation_steps, processes.n)
    check_task_weights(settings.task_weights)
    check_processes(settings, processes)
    if ignored := settings.ignored_loss_weights():
        names = ", ".join(f"{name} {value}" for name, value in ignored.items())
        print(f"train: change_mask is false, so these loss_weights have no effect: {names}", flush=True)
    if settings.change_mask and not settings.loss_weights.change_loss_weight and not start.is_editor:
        raise StartError(
            f"want train.loss_weights.change_loss_weight above 0 with change_mask true and start {start.reference}, got 0: an "
            "untrained head blends half of the source into every edit; set it to 0.5, or set train.change_mask to false"
        )


def check_average(settings: TrainSettings, start: StartingPoint, scheduler: Any) -> None:
    """Raise StartError if `start_share` would average networks of different prediction types. scheduler: that of the start."""
    before = prediction_type_of(scheduler)
    if start.is_editor and settings.start_share and settings.objective not in ("base", before):
        raise StartError(
            f"want train.objective base or {before}, that of the start {start.reference}, with train.start_share "
            f"{settings.start_share:g}, got {settings.objective}: an average of two prediction types is neither; set "
            "train.start_share to 0"
        )


def check_processes(settings: TrainSettings, processes: TrainingProcesses, n_sizes: int = 1) -> None:
    """Raise TrainingError or OptimizerError for settings that cannot be used with these processes, or with images of n sizes."""
    check_optimizer(settings.optimizer, processes.device_type)
    if processes.is_sharded and settings.ema_device == "cpu":
        raise TrainingError(
            "want train.ema_device same with sharded weights (FSDP), got cpu; set it to same: each process has only its part of "
            "the average, and train.ema_dtype bfloat16 halves it"
        )
    if processes.is_sharded and settings.optimizer != "adamw":
        raise TrainingError(
            f"want train.optimizer adamw with sharded weights (FSDP), got {settings.optimizer}; set it to adamw: bitsandbytes "
            "cannot shard its state"
        )
    got = {
        f"the device {processes.device_type}": processes.device_type != "cuda",
        f"{processes.n} processes": processes.n > 1,
        "sharded weights": processes.is_sharded,
        f"images of {n_sizes} sizes": n_sizes > 1,
        f"{settings.accumulation_steps} accumulation steps": settings.accumulation_steps > 1,
        "float16": settings.dtype == "float16",
    }
    reasons = [name for name, applies in got.items() if applies]
    if settings.cuda_graph and reasons:
        raise TrainingError(
            "want one GPU, one image size, one pass per step and float32 or bfloat16 for train.cuda_graph, got "
            f"{', '.join(reasons)}; set it to false"
        )


def tasks_to_train(pairs: TrainingPairs, held_out_share: float) -> tuple[str, ...]:
    """`LatentCache.tasks` before the pairs are encoded: tasks with training pairs, in the order of TASKS.

    Opens a shard only while it may have the first training pair of a task. Raises LatentCacheError for pairs of other tasks, and
    if there is no training pair.
    """
    bound, names = held_out_bound(held_out_share, pairs.n_pairs), set[str]()
    for shard in pairs.shards:
        task_of = pairs.tasks_of(shard)
        check_tasks(task_of.values())
        if set(task_of.values()) <= names:
            continue
        for pair_id, group in shard.image_groups().items():
            task = task_of.get(pair_id)
            if task is not None and task not in names and group_seed(group) >= bound:
                names.add(task)
    if not names:
        raise no_training_pairs(pairs.n_pairs)
    return tuple(task for task in ALL_TASKS if task in names)


def print_memory(
    editor: TrainableEditor, buckets: AspectBuckets, settings: TrainSettings, processes: TrainingProcesses, previews: bool
) -> None:
    """Print the memory that a training needs with images of the largest bucket. Raises MemoryFitError if it cannot fit."""
    for line in check_memory(editor, max(buckets.sizes, key=math.prod), settings, processes, previews):
        print(f"train: {line}", flush=True)
