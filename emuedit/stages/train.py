"""Stage `train`: train the editor on the kept pairs. A killed run resumes with the same command, bit for bit.

In: `data/pairs` and what `data/dataset` mixed in (Pair), `data/dataset` (Verdict), the base model. Out: `models/editor`, a
diffusers pipeline folder of the base model's class with `tasks/`, `stats.jsonl` and `summary.json`. Trained are the U-Net, the
task embedding and, with `lr_mult_text`, the text encoders.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from emuedit import config
from emuedit.data.dependencies import work_key
from emuedit.data.publish import Summary, read_summary, scratch_folder, write_summary
from emuedit.editor import checkpoint
from emuedit.editor.unet import EditorUNet
from emuedit.models import text_to_image
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import Runtime, seed_for
from emuedit.stages import stage_main
from emuedit.training import latent_cache
from emuedit.training.distributed import TrainingProcess, n_processes, run_distributed
from emuedit.training.latent_cache import LatentCache
from emuedit.training.loop import train_loop
from emuedit.training.train_settings import TrainSettings
from emuedit.training.trainable_editor import TrainableEditor

PAIRS, DATASET, OUT = "data/pairs", "data/dataset", "models/editor"
HEADLINE = "{steps} steps on {pairs} pairs, {held_out_pairs} pairs held out"


class TrainParams(TrainSettings):
    """Params of the stage."""

    world: config.World
    """The world; only its `base_model` is used."""
    device: str = "auto"
    """Where it trains: auto, cpu, cuda or mps."""
    processes: int = Field(0, ge=0)
    """Processes that share every batch; 0: one per core on a CPU, else one."""


def run(params: TrainParams, root: Path) -> Summary:
    """Encode what is new, train from the last saved step, publish to `models/editor`."""
    runtime = Runtime.choose(params.device, params.dtype)
    params = params.model_copy(update={"dtype": runtime.dtype})
    dataset = read_summary(root / DATASET)
    mixed = sorted(dataset.params.get("mix", ()))  # absent from verdicts that were written together with their pairs
    data: dict[str, Any] = {folder: read_summary(root / folder).shards for folder in (PAIRS, DATASET, *mixed)}
    name = config.resolve_path(params.world.base_model, root)
    recorded = params.model_dump(mode="json", exclude={"world", "device"}) | {"base_model": params.world.base_model}
    base_model = text_to_image.load(name, runtime.device)
    inputs = {"data": data, "base_model": params.world.base_model, "dtype": runtime.dtype}
    latents = _only_folder(root / "scratch" / "latents", work_key("train", inputs, root, name))
    with runtime.autocast():
        latent_cache.build([root / folder for folder in (PAIRS, *mixed)], root / DATASET, base_model, latents)
    cache = LatentCache(latents, params.held_out_share)
    scratch = scratch_folder(root, "train", work_key("train", recorded | {"data": data}, root, name))
    world_size = n_processes(params.processes, params.batch_size, runtime.device)
    TrainingProcess(0, world_size).shard(params.batch_size)  # an uneven batch is an error now, not in every process
    print(f"train: {len(cache.train)} pairs, {world_size} processes, {runtime}", flush=True)
    if world_size > 1:
        run_distributed(world_size, _train_in_process, params, name, latents, scratch)  # they save the last step
    net = _train(base_model, cache, params, scratch, TrainingProcess())
    counts = {"steps": params.steps, "pairs": len(cache.train), "held_out_pairs": len(cache.held_out)}
    return _publish(net, base_model.pipeline, scratch, root / OUT, recorded | {"data": data}, counts, params.stored_dtype)


def _train(
    base_model: TextToImageModel, cache: LatentCache, params: TrainParams, scratch: Path, process: TrainingProcess
) -> EditorUNet:
    """Make an editor of the base model, with the same start in every process, and run the loop."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for("editor", "start", params.seed))
        net = checkpoint.from_base_model(base_model, params.task_embedding_dim)
    train_loop(TrainableEditor(net, base_model, params.lr_mult_text > 0), cache, params, scratch, process)
    return net


def _train_in_process(process: TrainingProcess, params: TrainParams, base_model: str, latents: Path, scratch: Path) -> None:
    device = Runtime.choose(params.device, params.dtype).device
    _train(text_to_image.load(base_model, device), LatentCache(latents, params.held_out_share), params, scratch, process)


def _only_folder(parent: Path, name: str) -> Path:
    """The folder `name` below `parent`; others there, which belong to other data or code, are deleted."""
    for folder in parent.glob("*"):
        if folder.name != name:
            shutil.rmtree(folder)
    return parent / name


def _publish(
    net: EditorUNet, pipeline: Any, scratch: Path, out: Path, recorded: dict[str, Any], counts: dict[str, int], stored: str
) -> Summary:
    """Write the editor and the record of its training, `summary.json` last, then delete the scratch."""
    shutil.rmtree(out, ignore_errors=True)
    checkpoint.save(net, pipeline, out, getattr(torch, stored))
    shutil.copy2(scratch / "stats.jsonl", out / "stats.jsonl")
    summary = write_summary(out, "train", scratch.name, recorded, counts)
    shutil.rmtree(scratch.parent)
    return summary


if __name__ == "__main__":
    stage_main("train")
