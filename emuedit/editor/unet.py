"""The editor's network: a base model's U-Net extended by an image input, a task input and a change-mask output.

Shapes: B samples, C latent channels, h and w latent sizes, L text tokens of width D, D_v the width of a task embedding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from emuedit.core.guidance import GuidanceTerm
from emuedit.models.denoising import size_conditions
from emuedit.models.text_to_image import TextCondition

if TYPE_CHECKING:
    from emuedit.editor.task_embedding import TaskEmbedding


@dataclass(frozen=True)
class EditConditions:
    """Conditions of an edit."""

    c_I: Tensor  # latents of the input images [B, C, h, w]
    c_T: TextCondition  # instructions, B rows
    v: Tensor  # task embeddings [B, D_v]

    def with_guidance_terms(self, null: TextCondition, terms: Sequence[GuidanceTerm]) -> EditConditions:
        """The rows of all guidance terms in one batch, [terms B, ...]."""
        if len(terms) == 1:
            return self
        c_T = TextCondition.cat(*(self.c_T if term == "full" else null for term in terms))
        c_I = torch.cat([torch.zeros_like(self.c_I) if term == "null" else self.c_I for term in terms])
        return EditConditions(c_I, c_T, self.v.repeat(len(terms), 1))


class Prediction(NamedTuple):
    """The network's output."""

    e: Tensor  # prediction type of the scheduler: eps, v, clean latents or velocity, float32 [B, C, h, w]
    change_logits: Tensor | None  # logits that the edit changes a cell, float32 [B, 1, h, w]; None without a change-mask head


class EditorUNet(nn.Module):
    """e_theta(z_t, t, E(c_I), c_T, v) of Emu Edit (arXiv 2311.10089, Eq. 2), with an optional change-mask head (ours).

    `factor` is the number of pixels per latent cell and side.
    """

    def __init__(self, unet: Any, table: TaskEmbedding, factor: int) -> None:
        super().__init__()
        self.unet, self.table, self.factor = unet, table, factor
        sample = unet.config.sample_size
        self._native_px = factor * math.sqrt(sample**2 if isinstance(sample, int) else math.prod(sample))

    def forward(
        self, z_t: Tensor, t: Tensor, c_I: Tensor, c_T: TextCondition, v: Tensor | None, sizes: Tensor | None = None
    ) -> Prediction:
        """Latents z_t, c_I [B, C, h, w], t [B] or scalar, v [B, D_v] -> prediction and change logits.

        Without v there is no extra token and the class vector is zero: an untrained editor then equals its base model.
        `sizes` [B, 6] are SDXL's size conditions (`denoising.size_conditions`); other models have none. None: uncropped images,
        downscaled from the base model's size if they are smaller.
        """
        hidden, dtype = c_T.hidden.to(z_t), self.unet.dtype
        class_width = self.unet.class_embedding.in_features
        class_labels = torch.zeros(len(z_t), class_width, device=z_t.device, dtype=dtype)
        if v is not None:
            hidden = torch.cat([hidden, self.table.token(v).to(hidden)], 1)  # [B, L + 1, D]
            class_labels = nn.functional.pad(v, (0, class_width - v.shape[1])).to(dtype)
        out: Tensor = self.unet(  # [B, C + 1, h, w], or [B, C, h, w] without a change-mask head
            torch.cat([z_t, c_I], 1).to(dtype),  # [B, 2 C, h, w]
            t,
            encoder_hidden_states=hidden.to(dtype),
            class_labels=class_labels,
            added_cond_kwargs=size_conditions(c_T.pooled, z_t, self.factor, dtype, sizes, self._native_px),
            return_dict=False,
        )[0]
        e, *change_logits = out.float().split(z_t.shape[1], 1)  # an optional channel after the C latent channels
        return Prediction(e, change_logits[0] if change_logits else None)


def extend_unet(unet: Any, d_v: int, change_mask: bool = True) -> Any:
    """A U-Net with twice the input channels, a class embedding of width d_v, and with `change_mask` one more output channel.

    New weights of the first convolution are zero and its bias is kept (InstructPix2Pix, arXiv 2211.09800, section 3.2). The class
    embedding and the new output channel, the change mask, start at zero. All other weights are the base model's, and all except
    the first and last convolution are shared with `unet`. The result loads with `UNet2DConditionModel.from_pretrained`. SDXL's
    config shares d_v with its size embedding; there v is zero-padded to that width. Raises ValueError for a U-Net that already
    has a class embedding.
    """
    config = dict(unet.config)
    if config["class_embed_type"] is not None or config["num_class_embeds"] is not None:
        raise ValueError(
            f"want a U-Net without class embedding, got class_embed_type {config['class_embed_type']!r}, num_class_embeds "
            f"{config['num_class_embeds']!r}; the task embedding needs that input, use a plain text-to-image model"
        )
    fixed_width = config["projection_class_embeddings_input_dim"]
    if fixed_width is not None and fixed_width < d_v:
        raise ValueError(f"want d_v of at most {fixed_width}, the width that this U-Net's config fixes; got {d_v}")
    channels = config["in_channels"]
    config |= {
        "in_channels": 2 * channels,
        "out_channels": channels + change_mask,
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": fixed_width or d_v,
    }
    with torch.device("meta"):  # initialising random weights is slow, and all are replaced
        extended = type(unet).from_config({key: value for key, value in config.items() if not key.startswith("_")})
    weights = unet.state_dict()  # not copied: a large network has 10 GB
    conv_in = torch.zeros(extended.conv_in.weight.shape, dtype=unet.dtype, device=unet.device)  # [320, 2 C, 3, 3]
    conv_in[:, :channels] = weights["conv_in.weight"]
    conv_out = {
        name: torch.cat([weights[name], torch.zeros_like(weights[name][: int(change_mask)])])
        for name in ("conv_out.weight", "conv_out.bias")
    }
    class_embedding = {
        f"class_embedding.{name}": torch.zeros(value.shape, dtype=unet.dtype, device=unet.device)
        for name, value in extended.class_embedding.named_parameters()
    }
    weights |= {**conv_out, **class_embedding, "conv_in.weight": conv_in}  # conv_in.bias is among the other weights
    extended.load_state_dict(weights, assign=True)
    return extended.eval()


def has_change_mask(unet: Any, channels: int) -> bool:
    """Whether an editor's U-Net has a change-mask head: more output channels than the C latent channels."""
    return bool(unet.config.out_channels > channels)


def fingerprint(net: EditorUNet, dtype: torch.dtype) -> str:
    """Hash (16 hex digits) of all weights that a task embedding depends on, in their stored precision."""
    digest = hashlib.blake2b(digest_size=8)
    parts = {"unet": net.unet.state_dict(), "token": net.table.to_token.state_dict()}
    for part, weights in parts.items():
        for name, value in sorted(weights.items()):
            stored = value.detach().to("cpu", dtype).contiguous()
            digest.update(f"|{part}.{name}:{list(stored.shape)}".encode())
            digest.update(stored.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
