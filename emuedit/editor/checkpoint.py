"""An editor on disk: a complete diffusers pipeline folder of the base model's own class, with `tasks/` beside its parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emuedit.editor import task_embedding
from emuedit.editor.unet import EditorUNet, extend_unet, fingerprint
from emuedit.models import text_to_image
from emuedit.models.text_to_image import TextToImageModel

TASKS_FOLDER = "tasks"


class FrozenParts(TextToImageModel):
    """The parts that an editor shares with its base model: text encoder, VAE, scheduler. Its U-Net belongs to `EditorUNet`."""

    def _check(self) -> None:
        in_channels, out_channels, kind = (self.unet.config[key] for key in ("in_channels", "out_channels", "class_embed_type"))
        if kind != "simple_projection":
            raise ValueError(
                f"an editor's U-Net must take a task, got one with class_embed_type {kind!r}; this is a base model, train an "
                "editor from it"
            )
        if (in_channels, out_channels) != (2 * self.channels, self.channels + 1):
            raise ValueError(
                f"an editor's U-Net must have {2 * self.channels} input and {self.channels + 1} output channels (the VAE's "
                f"twice, and one more), got {in_channels} and {out_channels}; train the editor again"
            )


def from_base_model(base_model: TextToImageModel, d_v: int) -> EditorUNet:
    """An untrained editor: the base model's U-Net extended, and a new task embedding (from torch's global generator)."""
    unet = extend_unet(base_model.unet, d_v)
    d_text = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    return EditorUNet(unet, task_embedding.TaskEmbedding(d_v, d_text), base_model.factor)


def save(net: EditorUNet, pipeline: Any, folder: Path, dtype: torch.dtype) -> str:
    """Write the whole editor, weights in `dtype`, as safetensors; the network itself is not changed. Returns its fingerprint."""
    weights = fingerprint(net, dtype)
    present = {name: getattr(pipeline, name, None) for name in ("unet", "vae", "text_encoder", "text_encoder_2")}
    parts = {name: part for name, part in present.items() if part is not None} | {"unet": net.unet}
    pipeline.register_modules(**{name: nn.Module.to(copy.deepcopy(part), dtype) for name, part in parts.items()})
    pipeline.save_pretrained(folder, safe_serialization=True)
    pipeline.register_modules(**parts)
    net.table.save(folder / TASKS_FOLDER, weights, dtype)
    return weights


def load(folder: str, device: str, dtype: torch.dtype) -> tuple[EditorUNet, FrozenParts, str]:
    """(network, frozen parts, fingerprint) of an editor folder, on `device`; bfloat16 keeps float32 weights for autocast."""
    stored_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    table, weights = task_embedding.load(Path(folder, TASKS_FOLDER))
    parts = FrozenParts(text_to_image.open_pipeline(folder, device, stored_dtype, revision=None))
    net = EditorUNet(parts.unet, table.to(device), parts.factor).requires_grad_(False).eval()
    return net, parts, weights
