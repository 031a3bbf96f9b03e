"""Semantic segmentation (UPerNet, SegFormer) with transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from emuedit.models import image_tensors, model_sources

KIND = model_sources.ModelKind("a transformers semantic segmentation", "config.json")


class SemanticSegmenter:
    """Predicts the class of every pixel with the method `predict_labels`."""

    def __init__(self, model: Any, processor: Any) -> None:
        model_sources.check_keeps_frame(processor)
        self.model, self.processor = model, processor

    def predict_labels(self, images: torch.Tensor) -> np.ndarray:
        """Images [B, 3, H, W] in [-1, 1] -> class index of each pixel, int64 [B, H, W]."""
        inputs = self.processor(images=list(image_tensors.to_bytes(images)), return_tensors="pt")
        with torch.no_grad():
            out = self.model(inputs["pixel_values"].to(self.model.device, self.model.dtype))
        sizes = [tuple(images.shape[-2:])] * len(images)
        maps = self.processor.post_process_semantic_segmentation(out, target_sizes=sizes)
        return torch.stack(maps).cpu().numpy()


def load(name_or_path: str, device: str) -> SemanticSegmenter:
    """Load a network from a transformers folder or a hub id, such as openmmlab/upernet-convnext-small."""
    model_sources.read_manifest(name_or_path, KIND)
    classes = ("AutoModelForSemanticSegmentation", "AutoImageProcessor")
    return SemanticSegmenter(*model_sources.load_frozen(name_or_path, *classes, device, torch.float32))
