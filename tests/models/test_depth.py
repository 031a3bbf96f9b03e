from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.models import depth, image_tensors


def depth_anything(folder: str, **config: Any) -> None:
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
    settings = DepthAnythingConfig(backbone_config=backbone, patch_size=7, head_hidden_size=8, **sizes, **config)
    model = DepthAnythingForDepthEstimation(settings)
    with torch.no_grad():  # the map of a random network is flat, and the last ReLU may set it all to 0
        model.head.conv3.weight.mul_(1000)
        model.head.conv3.bias.fill_(1.0)
    model.save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=7, do_pad=False
    ).save_pretrained(folder)


@pytest.mark.slow
def test_depth_is_the_models_map_stretched_to_zero_to_one(two_images: torch.Tensor, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    depth_anything(str(tmp_path))
    maps = depth.load(str(tmp_path)).depth(two_images)
    assert maps.shape == (2, 40, 56)
    torch.testing.assert_close(maps.amin(dim=(1, 2)), torch.zeros(2))
    torch.testing.assert_close(maps.amax(dim=(1, 2)), torch.ones(2))
    model = AutoModelForDepthEstimation.from_pretrained(tmp_path).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        raw = model(**processor(images=image_tensors.to_pil(two_images), return_tensors="pt")).predicted_depth
    resized = torch.nn.functional.interpolate(raw[:, None], size=(40, 56), mode="bilinear")[:, 0]
    for stretched, reference in zip(maps, resized, strict=True):
        assert torch.corrcoef(torch.stack([stretched.flatten(), reference.flatten()]))[0, 1] > 0.9999


def test_a_flat_map_is_all_zero() -> None:
    maps = torch.stack([torch.full((2, 3), 7.0), torch.arange(6.0).view(2, 3)])
    maps[0, 0, 0] += 1e-6  # a difference by rounding
    torch.testing.assert_close(depth.stretch(maps)[0], torch.zeros(2, 3))
    torch.testing.assert_close(depth.stretch(maps)[1], torch.arange(6.0).view(2, 3) / 5)


def save_dpt(folder: Path, add_projection: bool, **processing: Any) -> None:
    """Save a DPT with a DINOv2 backbone; the metric ones of facebook have `add_projection` and pad their images."""
    from transformers import Dinov2Config, DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    sizes = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 256 if add_projection else 8}
    DPTForDepthEstimation(DPTConfig(backbone_config=backbone, add_projection=add_projection, **sizes)).save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, **processing).save_pretrained(folder)


@pytest.mark.slow
def test_a_metric_dpt_is_an_error(tmp_path: Path) -> None:
    """Its config does not say so, and nothing else fails: near would be dark."""
    save_dpt(tmp_path, add_projection=True)
    with pytest.raises(ValueError, match="with add_projection True, a model of metric depth, where nearer is smaller; use"):
        depth.load(str(tmp_path))


def test_a_dpt_of_relative_depth_is_accepted(two_images: torch.Tensor, tmp_path: Path) -> None:
    save_dpt(tmp_path, add_projection=False)
    assert depth.load(str(tmp_path)).depth(two_images).shape == (2, 40, 56)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"do_resize": False, "do_pad": True, "size_divisor": 14}, {"do_center_crop": True}])
def test_a_processor_that_changes_the_frame_is_an_error(change: dict[str, Any], tmp_path: Path) -> None:
    """The map of the padded image was resized to the image, so nothing was where it belongs."""
    save_dpt(tmp_path, add_projection=False, **change)
    with pytest.raises(ValueError, match=r"only resizes, got DPTImageProcessor with do_(pad|center_crop), .* shift the maps"):
        depth.load(str(tmp_path))


def test_a_metric_model_is_an_error(tmp_path: Path) -> None:
    depth_anything(str(tmp_path), depth_estimation_type="metric", max_depth=20)
    with pytest.raises(ValueError, match="with depth_estimation_type 'metric', a model of metric depth"):
        depth.load(str(tmp_path))
