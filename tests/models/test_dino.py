from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.models import dino, image_tensors


def dinov2(folder: str) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


def dinov1(folder: str) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)  # as in the folder of facebook/dino-vits16
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


@pytest.mark.parametrize("save_model", [dinov2, dinov1])
def test_the_embedding_is_the_normalised_cls_token(save_model: Any, two_images: torch.Tensor, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    save_model(str(tmp_path))
    embeddings = dino.load(str(tmp_path)).embed_images(two_images)
    model, processor = AutoModel.from_pretrained(tmp_path).eval(), AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        cls = model(**processor(images=image_tensors.to_pil(two_images), return_tensors="pt")).last_hidden_state[:, 0]
    torch.testing.assert_close(embeddings, cls / cls.norm(dim=-1, keepdim=True), rtol=1e-5, atol=1e-6)
    assert (embeddings[0] - embeddings[1]).norm() > 1e-3
