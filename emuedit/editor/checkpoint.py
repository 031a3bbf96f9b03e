"""An editor on disk: the folder of an `EmuEditPipeline`, with all parts in safetensors and a model card.

Its parts are classes of diffusers, which takes seconds to import; so that is done where an editor is made, saved or loaded.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emuedit.editor import model_card
from emuedit.editor.unet import EditorUNet, extend_unet, fingerprint
from emuedit.models import model_sources, text_to_image
from emuedit.models.text_to_image import TextToImageModel
from emuedit.tasks import ALL_TASKS, get_task

FROZEN_PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


class FrozenParts(TextToImageModel):
    """The parts that an editor shares with its base model: text encoder, VAE, scheduler. Its U-Net belongs to `EditorUNet`."""

    @property
    def device(self) -> torch.device:
        """Where the parts run, which is not where they lie while they are offloaded."""
        device: torch.device = self.pipeline._execution_device
        return device

    def _check(self) -> None:
        in_channels, out_channels, kind = (self.unet.config[key] for key in ("in_channels", "out_channels", "class_embed_type"))
        if kind != "simple_projection":
            raise ValueError(
                f"an editor's U-Net must take a task, got one with class_embed_type {kind!r}; this is a base model, train an "
                "editor from it"
            )
        if in_channels != 2 * self.channels or out_channels not in (self.channels, self.channels + 1):
            raise ValueError(
                f"an editor's U-Net must have {2 * self.channels} input channels and {self.channels} output channels (the VAE's "
                f"twice, and once), or {self.channels + 1} with a change-mask head; got {in_channels} and {out_channels}; train "
                "the editor again"
            )


def from_base_model(
    base_model: TextToImageModel, d_v: int, tasks: Sequence[str] = ALL_TASKS, change_mask: bool = True
) -> EditorUNet:
    """An untrained editor: the base model's U-Net extended, and a new task embedding (from torch's global generator).

    d_v: width of a task embedding. tasks: those that it will be trained on; each has a row, in this order, and no other task is
    offered. change_mask: whether it predicts where the picture changes. Raises ValueError for no task or one named twice, and
    UnknownTaskError.
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
    """Write the whole editor, weights in `dtype`, as safetensors; what is in memory is not changed. Returns its fingerprint.

    pipeline: the base model's or another editor's, which has the frozen parts. training: facts for the model card, such as
    `base_model` and `steps` (see `model_card`); None: those of `pipeline`. Parts are converted one after the other, so that
    memory has a second copy of one part at most, in `dtype`.
    """
    from emuedit.editor.edit_pipeline import EmuEditPipeline

    weights = fingerprint(net, dtype)
    parts = {name: getattr(pipeline, name, None) for name in FROZEN_PARTS}
    zero_null_text = bool(getattr(pipeline.config, "force_zeros_for_empty_prompt", False))
    training = getattr(pipeline.config, "training", None) if training is None else training
    net.table.register_to_config(weights=weights)
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
    return weights


def load(folder: str, device: str, dtype: torch.dtype) -> tuple[EditorUNet, FrozenParts, str]:
    """(network, frozen parts, fingerprint) of an editor folder, on `device`.

    On a CPU bfloat16 keeps float32 weights, for autocast. A GPU has the weights in bfloat16: half the memory, and nothing to cast
    in every forward (autocast keeps casts only of weights that are trained).
    """
    model_sources.import_library("diffusers")  # without progress bars of its own
    from emuedit.editor.edit_pipeline import EmuEditPipeline

    stored_dtype = torch.float32 if dtype == torch.bfloat16 and torch.device(device).type == "cpu" else dtype
    pipeline = text_to_image.freeze(EmuEditPipeline.from_pretrained(folder, dtype=stored_dtype), device)
    parts = FrozenParts(pipeline)
    net = EditorUNet(parts.unet, pipeline.task_embedding, parts.factor).requires_grad_(False).eval()
    return net, parts, pipeline.task_embedding.weights


def _drop_origin(config_file: Path) -> None:
    """Remove the path that a part was loaded from, which diffusers writes: it means nothing to others, and names this machine."""
    if config_file.is_file():
        values = json.loads(config_file.read_text(encoding="utf-8"))
        if values.pop("_name_or_path", None) is not None:
            config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _in_dtype(part: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of a part on the CPU with its floating point weights in `dtype`; weights that are so already are not copied."""
    memo: dict[int, Any] = {}  # deepcopy takes what it finds here instead of copying
    for weight in part.parameters():
        memo[id(weight)] = nn.Parameter(_to_cpu(weight.detach(), dtype), requires_grad=False)
    for buffer in part.buffers():
        memo[id(buffer)] = _to_cpu(buffer, dtype)
    return copy.deepcopy(part, memo)


def _to_cpu(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to("cpu", dtype if value.is_floating_point() else value.dtype)
