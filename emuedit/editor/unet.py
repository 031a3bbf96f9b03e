"""The editor's network: a base_model's U-Net widened to read a picture and a task, and to say where the picture changes.

Shapes: B samples, C latent channels, h and w latent sizes, L text tokens of width D, D_v width of a task embedding.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emuedit.editor.task_embedding import TaskEmbedding
from emuedit.models.text_to_image import TextCondition


class Prediction(NamedTuple):
    """What the network answers."""

    e: Tensor  # the prediction, eps or v, float32 [B, C, h, w]
    change: Tensor  # where the edit changes the picture, float32 logits [B, 1, h, w]


class EditorUNet(nn.Module):
    """e_theta(z_t, t, E(c_I), c_T, v) of Emu Edit (arXiv 2311.10089, Eq. 2), and what changes. `factor`: pixels a latent cell."""

    def __init__(self, unet: Any, table: TaskEmbedding, factor: int) -> None:
        super().__init__()
        self.unet, self.table, self.factor = unet, table, factor

    def forward(self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor | None) -> Prediction:
        """Latents z_t, c_I [B, C, h, w], t [B] or scalar, v [B, D_v] -> prediction and change.

        Without v there is no extra token and the class vector is zero: an untrained editor is then the base_model, bit for bit.
        """
        hidden, dtype = c_T.hidden.to(z_t), self.unet.dtype
        width = self.unet.class_embedding.in_features
        label = torch.zeros(len(z_t), width, device=z_t.device, dtype=dtype)
        if v is not None:
            hidden = torch.cat([hidden, self.table.token(v).to(hidden)], 1)  # [B, L + 1, D]
            label = nn.functional.pad(v, (0, width - v.shape[1])).to(dtype)
        added: dict[str, Tensor] | None = None
        if c_T.pooled is not None:
            # SDXL's size conditions: original size, crop corner, target size (arXiv 2307.01952, section 2.2)
            height, width = z_t.shape[-2] * self.factor, z_t.shape[-1] * self.factor
            ids = torch.tensor([height, width, 0, 0, height, width], device=z_t.device, dtype=dtype)
            added = {"text_embeds": c_T.pooled.to(dtype), "time_ids": ids.repeat(len(z_t), 1)}
        out: Tensor = self.unet(  # [B, C + 1, h, w]
            torch.cat([z_t, c_I], 1).to(dtype),  # [B, 2 C, h, w]
            t,
            encoder_hidden_states=hidden.to(dtype),
            class_labels=label,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        e, change = out.float().split([z_t.shape[1], 1], 1)
        return Prediction(e, change)


def widened(unet: Any, d_v: int) -> Any:
    """A U-Net with twice the input channels, a class embedding of width d_v that so far says nothing, and one more output.

    New weights of the first convolution are zero and its bias stays (InstructPix2Pix, arXiv 2211.09800, section 3.2); those of
    the new output, where the picture changes, are zero: everywhere or nowhere, one in two. The rest is as it was.
    It reloads by `UNet2DConditionModel.from_pretrained` alone. SDXL shares the config's width with its own size embedding;
    there v is padded with zeros to that width.
    """
    config = dict(unet.config)
    if config["class_embed_type"] is not None or config["num_class_embeds"] is not None:
        raise ValueError(
            f"want a U-Net without class embedding, got class_embed_type {config['class_embed_type']!r}, num_class_embeds "
            f"{config['num_class_embeds']!r}; its place is the task's, take a plain text-to-image base_model"
        )
    taken = config["projection_class_embeddings_input_dim"]
    if taken is not None and taken < d_v:
        raise ValueError(f"want d_v of at most {taken}, the width that this U-Net's config fixes; got {d_v}")
    channels = config["in_channels"]
    config |= {
        "in_channels": 2 * channels,
        "out_channels": channels + 1,
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": taken or d_v,
    }
    new = type(unet).from_config({key: value for key, value in config.items() if not key.startswith("_")})
    weights = unet.state_dict()
    first = torch.zeros_like(new.conv_in.weight, dtype=unet.dtype, device=unet.device)  # [320, 2 C, 3, 3]
    first[:, :channels] = weights["conv_in.weight"]
    last = {
        name: torch.cat([weights[name], torch.zeros_like(weights[name][:1])]) for name in ("conv_out.weight", "conv_out.bias")
    }
    projection = new.class_embedding
    weights |= {
        **last,
        "conv_in.weight": first,  # conv_in.bias comes with the others
        "class_embedding.weight": torch.zeros_like(projection.weight),
        "class_embedding.bias": torch.zeros_like(projection.bias),
    }
    new.load_state_dict(weights)
    return nn.Module.to(new, device=unet.device, dtype=unet.dtype).eval()  # diffusers' own `to` warns of nothing


def fingerprint(net: EditorUNet, dtype: torch.dtype) -> str:
    """16 hex digits over all weights that give a row of the table its meaning, in the precision they are stored in."""
    digest = hashlib.blake2b(digest_size=8)
    parts = {"unet": net.unet.state_dict(), "token": net.table.to_token.state_dict()}
    for part, weights in parts.items():
        for name, value in sorted(weights.items()):
            stored = value.detach().to("cpu", dtype).contiguous()
            digest.update(f"|{part}.{name}:{list(stored.shape)}".encode())
            digest.update(stored.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
