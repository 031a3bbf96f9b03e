"""The DINO scorer: image embeddings of a self-supervised ViT (DINO, DINOv2), with transformers.

Shapes: B images, H and W pixels, D the width of the ViT.
"""

from __future__ import annotations

from typing import Any

import torch

from emuedit.models import image_tensors, model_sources


class DinoScorer:
    """`embed_images` returns unit vectors, so their dot products are cosine similarities."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> unit vectors of the CLS token, float32 [B, D] on the model's device."""
        inputs = self.processor(images=list(image_tensors.to_bytes(images)), return_tensors="pt")
        with torch.no_grad():
            out = self.model(inputs["pixel_values"].to(self.model.device, self.model.dtype))
        cls: torch.Tensor = out.last_hidden_state[:, 0]  # [B, D], after the last layer norm
        return torch.nn.functional.normalize(cls.float(), dim=-1)


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DinoScorer:
    """Load a scorer from a transformers folder or a hub id, such as facebook/dinov2-base or facebook/dino-vits16."""
    model_sources.read_manifest(name_or_path, model_sources.DINO)
    return DinoScorer(*model_sources.load_frozen(name_or_path, "AutoModel", "AutoImageProcessor", device, dtype))
