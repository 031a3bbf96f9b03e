"""Save and load an editor: an `EmuEditPipeline` folder with safetensors weights and a model card.

diffusers takes seconds to import, so it is imported only when an editor is created, saved or loaded.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emuedit.editor import model_card
from emuedit.editor.settings import MAX_RESOLUTION_PX
from emuedit.editor.unet import EditorUNet, extend_unet, fingerprint
from emuedit.models import model_sources, text_to_image
from emuedit.models.text_to_image import TextToImageModel
from emuedit.tasks import ALL_TASKS, get_task

FROZEN_PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


class FrozenParts(TextToImageModel):
    """The parts that an editor shares with its base model: text encoder, VAE, scheduler. The U-Net is in `EditorUNet`."""

    @property
    def device(self) -> torch.device:
        """Device on which the parts run; offloaded parts are stored elsewhere."""
        device: torch.device = self.pipeline._execution_device
        return device

    def _check(self) -> None:
        in_channels, out_channels, kind = (self.unet.config[key] for key in ("in_channels", "out_channels", "class_embed_type"))
        if kind != "simple_projection":
            raise ValueError(
                f"an editor's U-Net must take a task, got one with class_embed_type {kind!r}; this is a base model; train an "
                "editor from it"
            )
        if in_channels != 2 * self.channels or out_channels not in (self.channels, self.channels + 1):
            raise ValueError(
                f"an editor's U-Net must have {2 * self.channels} input channels and {self.channels} output channels "
                f"(twice the VAE's, and once), or {self.channels + 1} with a change-mask head; "
                f"got {in_channels} and {out_channels}; train the editor again"
            )


def from_base_model(
    base_model: TextToImageModel, d_v: int, tasks: Sequence[str] = ALL_TASKS, change_mask: bool = True
) -> EditorUNet:
    """An untrained editor: the extended U-Net of the base model and a new task embedding (torch's global generator).

    d_v: width of a task embedding. tasks: the tasks to train; each gets a row, in this order. change_mask: whether the editor
    predicts where the image changes. Raises ValueError for an empty list or a duplicate task, and UnknownTaskError.
    """
    from emuedit.editor.task_embedding import TaskEmbedding

    if not tasks or len(set(tasks)) != len(tasks):
        raise ValueError(f"want one or more different tasks to train on, got {list(tasks)}")
    names = [get_task(task).name for task in tasks]
    unet = extend_unet(base_model.unet, d_v, change_mask)
    d_text = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    return EditorUNet(unet, TaskEmbedding(d_v, d_text, names), base_model.factor)


def save(
    net: EditorUNet, pipeline: Any, folder: Path, dtype: torch.dtype, training: Mapping[str, str | int | float] | None = None
) -> str:
    """Write the editor as safetensors with weights in `dtype`; parts in memory are unchanged. Returns its fingerprint.

    pipeline: the pipeline of the base model or an editor, with the frozen parts. training: facts for the model card, such as
    `base_model` and `steps` (see `model_card`), and `resolution` in px, at which the editor edits (see `training_resolution`);
    None: the facts of `pipeline`. Parts are converted one at a time, so memory holds at most one converted copy.
    Raises ValueError for a network with adapters or learned change thresholds (`TaskEmbedding.check_storable`).
    """
    from emuedit.editor.edit_pipeline import EmuEditPipeline

    net.table.check_storable()
    editor_fingerprint = fingerprint(net, dtype)
    parts = {name: getattr(pipeline, name, None) for name in FROZEN_PARTS}
    zero_null_text = bool(getattr(pipeline.config, "force_zeros_for_empty_prompt", False))
    training = getattr(pipeline.config, "training", None) if training is None else training
    net.table.register_to_config(weights=editor_fingerprint)
    editor = EmuEditPipeline(
        **parts, unet=net.unet, task_embedding=net.table, force_zeros_for_empty_prompt=zero_null_text,
        training=dict(training or {}),
    )  # fmt: skip
    for name, part in editor.components.items():
        if part is not None:
            stored = _in_dtype(part, dtype) if isinstance(part, nn.Module) else part
            stored.save_pretrained(folder / name)
            _drop_origin(folder / name / "config.json")
    editor.save_config(folder)
    model_card.write(editor, folder)
    return editor_fingerprint


def training_resolution(parts: TextToImageModel) -> int:
    """Side in px of a square with the area of an editor's training images, by its training facts (see `save`).

    Without the fact `resolution`, the area of the base model's training images. Raises ValueError for another value than an
    integer from 1 to 16384.
    """
    facts = getattr(parts.pipeline.config, "training", None) or {}
    resolution = facts.get("resolution")
    if resolution is None:
        return round(math.sqrt(math.prod(parts.size)))
    if type(resolution) is not int or not 1 <= resolution <= MAX_RESOLUTION_PX:
        raise ValueError(
            f"want a training resolution from 1 to {MAX_RESOLUTION_PX} px in model_index.json of an editor, got {resolution!r}; "
            "correct it, or remove it for the base model's"
        )
    return resolution


def load(folder: str, device: str, dtype: torch.dtype) -> tuple[EditorUNet, FrozenParts, str]:
    """Load an editor folder to `device`: (network, frozen parts, fingerprint).

    On a CPU, bfloat16 means float32 weights under autocast. On a GPU the weights are bfloat16, which halves memory and avoids
    casts in every forward (autocast caches casts only of trained weights).
    """
    model_sources.import_library("diffusers")  # without its progress bars
    from emuedit.editor.edit_pipeline import EmuEditPipeline

    stored_dtype = torch.float32 if dtype == torch.bfloat16 and torch.device(device).type == "cpu" else dtype
    pipeline = text_to_image.freeze(EmuEditPipeline.from_pretrained(folder, dtype=stored_dtype), device)
    parts = FrozenParts(pipeline)
    net = EditorUNet(parts.unet, pipeline.task_embedding, parts.factor).requires_grad_(False).eval()
    return net, parts, pipeline.task_embedding.fingerprint


def _drop_origin(config_file: Path) -> None:
    """Remove the source path that diffusers writes into configs: it is useless elsewhere and exposes a local path."""
    if config_file.is_file():
        values = json.loads(config_file.read_text(encoding="utf-8"))
        if values.pop("_name_or_path", None) is not None:
            config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _in_dtype(part: nn.Module, dtype: torch.dtype) -> Any:
    """A CPU copy of a part with floating point weights in `dtype`; weights that already match are not copied."""
    memo: dict[int, Any] = {}  # deepcopy reuses the entries instead of copying
    for weight in part.parameters():
        memo[id(weight)] = nn.Parameter(_to_cpu(weight.detach(), dtype), requires_grad=False)
    for buffer in part.buffers():
        memo[id(buffer)] = _to_cpu(buffer, dtype)
    return copy.deepcopy(part, memo)


def _to_cpu(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to("cpu", dtype if value.is_floating_point() else value.dtype)
