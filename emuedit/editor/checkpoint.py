"""An editor on disk: a complete diffusers pipeline folder of the base_model's own class, with `tasks/` beside its parts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emuedit.editor import task_embedding
from emuedit.editor import unet as network
from emuedit.editor.unet import EditorUNet
from emuedit.models import text_to_image
from emuedit.models.text_to_image import TextToImageModel

TASKS_FOLDER = "tasks"


class FrozenParts(TextToImageModel):
    """What an editor shares with the base_model it came from: text encoder, VAE, schedule. Its U-Net belongs to `EditorUNet`."""

    def _check(self) -> None:
        read, said, kind = (self.unet.config[key] for key in ("in_channels", "out_channels", "class_embed_type"))
        if kind != "simple_projection":
            raise ValueError(
                f"an editor's U-Net must read a task, got one with class_embed_type {kind!r}; this is a base_model, train an editor "
                "from it"
            )
        if (read, said) != (2 * self.channels, self.channels + 1):
            raise ValueError(
                f"an editor's U-Net must read {2 * self.channels} channels and say {self.channels + 1}, twice the VAE's and one "
                f"more, got {read} and {said}; it was made otherwise, train the editor anew"
            )


def from_base_model(base_model: TextToImageModel, d_v: int) -> EditorUNet:
    """An untrained editor: the base_model's U-Net widened, and a fresh task table (from torch's global generator)."""
    unet = network.widened(base_model.unet, d_v)
    return EditorUNet(
        unet, task_embedding.TaskEmbedding(d_v, unet.config.encoder_hid_dim or unet.config.cross_attention_dim), base_model.factor
    )


def save(net: EditorUNet, pipeline: Any, folder: Path, dtype: torch.dtype) -> str:
    """Write the whole editor, weights in `dtype`, safetensors only; the network comes back as it was. Returns its fingerprint."""
    weights = network.fingerprint(net, dtype)
    named = {name: getattr(pipeline, name, None) for name in ("unet", "vae", "text_encoder", "text_encoder_2")}
    parts = {name: part for name, part in named.items() if part is not None} | {"unet": net.unet}
    pipeline.register_modules(**{name: nn.Module.to(copy.deepcopy(part), dtype) for name, part in parts.items()})
    pipeline.save_pretrained(folder, safe_serialization=True)
    pipeline.register_modules(**parts)
    net.table.save(folder / TASKS_FOLDER, weights, dtype)
    return weights


def load(folder: str, device: str, dtype: torch.dtype, revision: str | None = None) -> tuple[EditorUNet, FrozenParts, str]:
    """(network, frame, fingerprint) of an editor folder or hub id, frozen, on `device`; bfloat16 keeps float32 weights."""
    kept = torch.float32 if dtype == torch.bfloat16 else dtype  # autocast does the rest
    frame = FrozenParts(text_to_image.open_pipeline(folder, device, kept, revision))
    tasks, weights = task_embedding.load(_tasks(folder, revision))
    net = EditorUNet(frame.unet, tasks.to(device), frame.factor).requires_grad_(False).eval()
    return net, frame, weights


def _tasks(folder: str, revision: str | None) -> Path:
    if Path(folder).is_dir():
        return Path(folder, TASKS_FOLDER)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(folder, revision=revision, allow_patterns=f"{TASKS_FOLDER}/*")) / TASKS_FOLDER
