"""Stage `train`: train the editor on the kept pairs. The same command resumes a killed run, with bit-identical results.

In: `data/pairs` and the folders mixed in by `data/dataset` (Pair), `data/dataset` (Verdict), the base model or an editor to
continue. Out: `models/editor`, an `EmuEditPipeline` folder with `replay/` and `summary.json`; `logs/train`. The trained parts
are the U-Net, the task embedding and, with `lr_mult_text`, the text encoders.
"""

import contextlib
import gc
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from emuedit import config
from emuedit.data.dependencies import work_key
from emuedit.data.publish import PREVIEWS, Summary, empty_folder, publish_logs, read_summary, scratch_folder, write_summary
from emuedit.editor import checkpoint
from emuedit.editor.settings import EditSettings
from emuedit.processes import prepare_workers
from emuedit.progress import waiting
from emuedit.runtime import Device, Runtime
from emuedit.stages import batch_divisor, stage_main
from emuedit.training import starting_point, training_checks
from emuedit.training.accelerate_launch import LaunchConfig, run_accelerate
from emuedit.training.batches import disk_space, encoding_processes, latent_files, replay
from emuedit.training.batches.aspect_buckets import AspectBuckets
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.batches.latent_files import EncodingKeys
from emuedit.training.distributed import TrainingProcesses, is_sharded, n_passes, n_processes, open_accelerator, run_distributed
from emuedit.training.loop import Preview, TrainLoop
from emuedit.training.optim.optimization import STATE_FILE, read_average
from emuedit.training.start_average import average_with_start
from emuedit.training.starting_point import BASE_MODEL, Encoders, StartingPoint
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor

PAIRS, DATASET, OUT = "data/pairs", "data/dataset", "models/editor"
WORKER_MODULES = ("emuedit.editor.edit_pipeline",)
"""Slow imports of the training processes."""
HEADLINE = "{steps} steps on {pairs} pairs, {held_out_pairs} pairs held out"
_WITHOUT_EFFECT_ON_RESULT = {
    "world", "device", "processes", "accelerate_config", "accumulation_steps", "gradient_checkpointing", "compile", "cuda_graph",
    "save_every_s", "log_every_steps", "eval_every_steps", "preview",
}  # fmt: skip
"""Params that change results at most by rounding; a training can be resumed with other values."""


class PreviewParams(config.Params):
    """Sample edits during training: contact sheets in `previews/`, and the success of each task in the log."""

    function: str = "emuedit/metrics/training_preview.py"
    """File with `preview(benchmark, tasks, n_edits, settings, folder, device)`, returning a function of (sampler, step)."""
    every_min: float = Field(30.0, ge=0)
    """Minimum minutes between previews; a preview is made together with a held-out loss."""
    n_edits: int = Field(4, ge=1)
    """Edits per task."""
    settings: EditSettings = EditSettings()
    """Settings of the edits."""


class TrainParams(TrainSettings):
    """Params of the stage."""

    world: config.World
    """The world: its `base_model` and `base_editor`, and for previews its `benchmark`."""
    start: str = BASE_MODEL
    """Start: base_model (fine-tune the text-to-image model); base_editor (the world's); champion (the registry's champion, else
    the base editor or base model); or a folder, `models:/...`, `runs:/...` or hub id of an editor."""
    replay_pairs: int = Field(500, ge=0)
    """Number of pairs stored with the editor as a replay sample; 0: none, e.g. if images must not be shared."""
    preview: PreviewParams | None = PreviewParams()
    """Sample edits during training; null: none."""
    device: Device = "auto"
    """Device: auto, cpu, cuda or mps."""
    processes: int = Field(0, ge=0)
    """Processes on this machine that share a batch; 0: one per core or GPU, limited to a divisor of the batch size."""
    accelerate_config: str | None = None
    """A config file of accelerate (FSDP, several machines; see `infra/accelerate/`), instead of `processes`. With several
    machines, the first one (`machine_rank: 0`) publishes the editor."""


@dataclass(frozen=True)
class TrainJob:
    """The training that each of its processes does; it can be pickled, to send it to them."""

    params: TrainParams
    start: StartingPoint
    latents: Path
    """Folder of the encoded pairs."""
    scratch: Path
    """Folder of the training's state, previews and log."""

    def make_editor(self) -> tuple[TrainableEditor, LatentCache]:
        """The initial editor, equal in every process, and the pairs, whose tasks are its rows."""
        cache = LatentCache(self.latents, self.params.held_out_share)
        net, parts = self.start.editor(cache.tasks, self.params.task_embedding_dim, self.params.change_mask, self.params.seed)
        return TrainableEditor(net, parts, self.params), cache.with_tasks(net.table.names)

    def train(self, device: str) -> TrainableEditor:
        """Train in this process, alone or as one of several, from the last saved step; returns the editor, LoRA not merged."""
        params = self.params
        with (
            open_accelerator(device, params.dtype) as accelerator,
            tempfile.TemporaryDirectory() as discarded,  # with FSDP all processes make previews
        ):
            main, preview = accelerator.is_main_process, None
            with waiting("train: making the editor") if main else contextlib.nullcontext():
                editor, cache = self.make_editor()
                if main or is_sharded(accelerator):  # the processes that show previews
                    folder = self.scratch / PREVIEWS if main else Path(discarded)
                    preview = _prepare_preview(params, editor, cache.tasks, folder, str(accelerator.device), main)
                loop = TrainLoop(editor, cache, params, self.scratch, accelerator, preview)
            loop.run()
        if params.lora is None:  # else `read_trained` merges the adapters, into weights that are not in half precision
            editor.finish()
        return editor

    def read_trained(self) -> TrainableEditor:
        """Load the trained editor from the state of the training, with adapters merged, on the CPU in float32."""
        editor, _ = self.make_editor()
        editor.prepare(torch.device("cpu"))
        read_average(editor, self.scratch / STATE_FILE)
        editor.finish()
        return editor


def run(params: TrainParams, root: Path) -> Summary:
    """Check the training, encode new data, train from the last saved step, publish to `models/editor`.

    With several machines, which share the folder, the first one publishes.
    """
    runtime = Runtime.choose(params.device, params.dtype)
    if runtime.dtype == "float16" and runtime.device == "cpu":
        raise ValueError("want float32 or bfloat16 for a training on a CPU, got float16; set train.dtype to auto")
    params = params.model_copy(update={"dtype": runtime.dtype})
    launch = None if params.accelerate_config is None else LaunchConfig.read(root / params.accelerate_config)
    processes = _processes(params, runtime.device, launch)
    start = starting_point.resolve(params.start, params.world, root)
    training_checks.check_settings(params, start, processes)
    if processes.n > 1 and launch is None:
        prepare_workers(runtime.device, WORKER_MODULES)
    dataset = read_summary(root / DATASET)
    mixed = sorted(dataset.params.get("mix", ()))  # missing in verdicts that were written together with their pairs
    data: dict[str, Any] = {folder: read_summary(root / folder).shards for folder in (PAIRS, DATASET, *mixed)}
    folders = [root / folder for folder in (PAIRS, *mixed)]
    recorded = params.model_dump(mode="json", exclude={"world", "device"}) | {"base_model": params.world.base_model}
    recorded |= {"start": start.reference, "ancestors": list(start.ancestors)}
    params = _with_smaller_passes(params, processes.n)
    latents = _encode_pairs(params, start, processes, runtime, folders, root)
    gc.collect()  # what encoded them is not needed for training
    torch.cuda.empty_cache()  # other processes may train on this GPU
    cache = LatentCache(latents, params.held_out_share)
    changes_the_result = {key: value for key, value in recorded.items() if key not in _WITHOUT_EFFECT_ON_RESULT}
    changes_the_result |= {"data": data}
    scratch = scratch_folder(root, "train", work_key("train", changes_the_result, root, start.folder), changes_the_result)
    n_earlier = int(cache.train.is_replay.sum())
    earlier = f" (and {n_earlier} replayed ones)" if n_earlier else ""
    n_pairs = len(cache.train) - n_earlier
    print(f"train: from {start.reference}, {n_pairs} pairs{earlier}, {processes.n} processes, {runtime}", flush=True)
    job = TrainJob(params, start, latents, scratch)
    trained = _train_in_processes(job, processes, launch, root)
    counts = {"steps": params.steps, "pairs": n_pairs, "held_out_pairs": len(cache.held_out)}
    counts |= {"replayed_pairs": n_earlier} if n_earlier else {}
    if launch is not None and launch.machine_rank:
        print(f"train: done; the first machine (machine_rank 0) publishes to {OUT}", flush=True)
        return Summary("train", scratch.name, recorded | {"data": data}, counts, {})
    editor = job.read_trained() if trained is None or params.lora is not None else trained
    if start.is_editor and params.start_share:
        average_with_start(editor, job.make_editor()[0], params.start_share, len(start.trained_tasks))
    if params.replay_pairs:
        replay.write(scratch / starting_point.REPLAY, cache, folders, start.replay, params.replay_pairs)
    return _publish(editor, scratch, root, recorded | {"data": data}, counts, params.stored_dtype)


def _processes(params: TrainParams, device: str, launch: LaunchConfig | None) -> TrainingProcesses:
    """The training's processes. Raises ValueError if they cannot split the batch evenly, and for more than there are GPUs."""
    processes = TrainingProcesses(device, params.processes) if launch is None else launch.processes(device)
    return replace(processes, n=n_processes(processes.n, params.batch_size, device, on_this_machine=launch is None))


def _encode_pairs(
    params: TrainParams, start: StartingPoint, processes: TrainingProcesses, runtime: Runtime, folders: Sequence[Path], root: Path
) -> Path:
    """Check that the editor can be trained, then encode pairs and instructions once; returns the folder of the latents.

    Raises StartError, MemoryFitError, DiskSpaceError, ValueError for an objective that the scheduler does not allow, and what the
    benchmark raises for a missing task.
    """
    pairs = TrainingPairs(folders, root / DATASET, start.replay)
    tasks = training_checks.tasks_to_train(pairs, params.held_out_share)
    net, parts = start.editor(tasks, params.task_embedding_dim, params.change_mask, params.seed)
    training_checks.check_average(params, start, parts.scheduler)
    buckets = AspectBuckets.for_base_model(parts, params.resolution, params.max_aspect_ratio)
    untrained = TrainableEditor(net, parts, params)
    _check_editor(untrained, params, processes, buckets, tasks)
    encoders = Encoders.on(runtime.device, untrained.parts.pipeline)
    keys = EncodingKeys.of(start.folder, runtime.dtype, root)
    latents = _only_folder(root / "scratch" / "latents", keys.latents)
    encode = encoding_processes.in_processes(encoders, runtime, processes.n)
    with runtime.autocast():
        disk_space.make_room(pairs, encoders, latents, buckets, mirrored=params.flip, text_key=keys.texts)
        latent_files.build(pairs, encoders, latents, buckets, mirrored=params.flip, text_key=keys.texts, encode=encode)
    return latents


def _check_editor(
    editor: TrainableEditor, params: TrainParams, processes: TrainingProcesses, buckets: AspectBuckets, tasks: Sequence[str]
) -> None:
    """Check that the training fits into memory and that the previews can be made.

    Raises MemoryFitError, and what the benchmark raises for a missing task or a missing model of its judge.
    """
    training_checks.print_memory(editor, buckets, params, processes, params.preview is not None)
    with tempfile.TemporaryDirectory() as discarded:
        if preview := _prepare_preview(params, editor, tasks, Path(discarded), processes.device, main=True):
            preview.check()


def _train_in_processes(
    job: TrainJob, processes: TrainingProcesses, launch: LaunchConfig | None, root: Path
) -> TrainableEditor | None:
    """Train as `accelerate launch` does, in new processes, or in this one. Returns the editor that this process trained, if any.

    Raises DistributedError if another process fails.
    """
    if launch is not None:
        run_accelerate(root / str(job.params.accelerate_config), job.train, processes.device)
        return None
    if processes.n > 1:
        run_distributed(processes.n, processes.device, job.train, processes.device)
        return None
    return job.train(processes.device)


def _prepare_preview(
    params: TrainParams, editor: TrainableEditor, tasks: Sequence[str], folder: Path, device: str, main: bool
) -> Preview | None:
    """The preview of a training, if any, printed by the main process. Fails early if the benchmark lacks a task."""
    if (settings := params.preview) is None:
        return None
    make_edits = config.import_function(settings.function, "preview")
    edit = make_edits(params.world.benchmark, tasks, settings.n_edits, settings.settings, folder, device)

    def show(step: int) -> dict[str, float]:
        with editor.sampling() as sampler:
            metrics: dict[str, float] = edit(sampler, step)
        if main:
            print(f"train: step {step}, {metrics['success.overall']:.2f} of the edits succeed; see {folder}", flush=True)
        return metrics

    return Preview(60 * settings.every_min, show, getattr(edit, "check", lambda: None))


def _with_smaller_passes(params: TrainParams, world_size: int) -> TrainParams:
    """After running out of memory: halve the pairs per pass, or use the next smaller divisor of the batch."""
    if batch_divisor() == 1:
        return params
    at_once = params.batch_size // world_size // n_passes(params.batch_size, params.accumulation_steps, world_size)
    if at_once == 1:
        advice = "retrying unchanged; set train.gradient_checkpointing to true, or lower train.batch_size"
        print(f"train: ran out of memory with one pair per pass, which cannot be halved; {advice}", flush=True)
        return params
    fewer = next(n for n in range(max(1, at_once // batch_divisor()), 0, -1) if params.batch_size % n == 0)
    print(f"train: ran out of memory with {at_once} pairs per pass; retrying with at most {fewer}", flush=True)
    return params.model_copy(update={"accumulation_steps": params.batch_size // fewer, "cuda_graph": False})


def _only_folder(parent: Path, name: str) -> Path:
    """The folder `name` in `parent`; deletes other folders there, which belong to other data or code."""
    for folder in parent.glob("*"):
        if folder.name != name:
            shutil.rmtree(folder)
    return parent / name


def _publish(
    editor: TrainableEditor, scratch: Path, root: Path, recorded: dict[str, Any], counts: dict[str, int], stored: str
) -> Summary:
    """Write the editor and the record of its training, `summary.json` last, then delete the scratch."""
    out = root / OUT
    empty_folder(out)
    facts = {key: recorded[key] for key in ("base_model", "start", "objective", "preset", "resolution") if recorded[key]} | counts
    checkpoint.save(editor.net, editor.parts.pipeline, out, getattr(torch, stored), facts)
    if (scratch / starting_point.REPLAY).is_dir():
        shutil.copytree(scratch / starting_point.REPLAY, out / starting_point.REPLAY)
    publish_logs(scratch, root, "train")
    summary = write_summary(out, "train", scratch.name, recorded, counts)
    shutil.rmtree(scratch.parent)
    return summary


if __name__ == "__main__":
    stage_main("train")
