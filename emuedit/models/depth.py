"""The depth estimator: relative inverse depth of images (Depth Anything, DPT), with transformers.

Shapes: B images, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import torch

from emuedit.models import image_tensors, model_sources


class DepthEstimator:
    """Estimates depth maps with the method `depth`."""

    def __init__(self, model: Any, processor: Any) -> None:
        model_sources.check_keeps_frame(processor)
        self.model, self.processor = model, processor

    def depth(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> float32 [B, H, W] in [0, 1] on the model's device; nearer is larger.

        Relative depth has neither scale nor offset, so each map is normalised from its minimum to its maximum.
        This choice is ours. A flat map becomes all 0.
        """
        inputs = self.processor(images=list(image_tensors.to_bytes(images)), return_tensors="pt")
        with torch.no_grad():
            out = self.model(inputs["pixel_values"].to(self.model.device, self.model.dtype))
        raw: torch.Tensor = out.predicted_depth.float()  # [B, h, w]
        size = (images.shape[-2], images.shape[-1])
        return stretch(torch.nn.functional.interpolate(raw[:, None], size=size, mode="bilinear", align_corners=False)[:, 0])


def stretch(maps: torch.Tensor) -> torch.Tensor:
    """Stretch each map of [B, H, W] to [0, 1]. A map that is flat up to float32 rounding becomes all 0."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    span = high - low
    flat = span <= 1e-6 * torch.maximum(low.abs(), high.abs())
    return torch.where(flat, torch.zeros_like(maps), (maps - low) / span.masked_fill(flat, 1.0))


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DepthEstimator:
    """Load an estimator from a transformers folder or a hub id.

    Examples of hub ids: depth-anything/Depth-Anything-V2-Small-hf, Intel/dpt-large. Raises ValueError for a metric model, and for
    an image processor that pads or crops.
    """
    model_sources.read_manifest(name_or_path, model_sources.DEPTH)
    classes = ("AutoModelForDepthEstimation", "AutoImageProcessor")
    return DepthEstimator(*model_sources.load_frozen(name_or_path, *classes, device, dtype))
