"""Training of the segmenter: a small SAM that predicts the mask of the object in a box or under a point.

Shapes: N images, M prompts of all images together, C = 64 channels of the decoder, a grid of 16x16 patches of 4 px.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emuedit.models import sam_builder
from toyworld.scenes.palette import SIZE
from toyworld.training.render_cache import N_SCENES, cache_folder, load_scenes
from toyworld.training.training_run import Recipe, autocast, device, train

RECIPE = Recipe(steps=1600, batch=16, lr=1.5e-3, warmup_steps=150, decay_share=0.5, ema_decay=0.997)
CONFIG = sam_builder.SamConfig(
    encoder_width=96,
    encoder_depth=3,
    encoder_heads=3,
    global_attn_indexes=(2,),
    image_size=SIZE,
    patch_size=4,
    window_size=8,
    prompt_embed_dim=64,
    decoder_heads=2,
    decoder_mlp_dim=128,
    iou_head_hidden_dim=64,
    pixel_mean=(127.5, 127.5, 127.5),
    pixel_std=(63.75, 63.75, 63.75),
)
POINT_SHARE = 0.15  # share of prompts that are a point; the others are a box
BOX_JITTER = 0.08  # standard deviation of the position of an edge, as a fraction of the side of the box


def build(config: sam_builder.SamConfig = CONFIG) -> Any:
    """A SAM of segment_anything's classes with random weights; 0.6 M parameters."""
    return sam_builder.build(config)


def sample_prompts(boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Random prompts from the true boxes [M, 4] in px and masks bool [M, 64, 64].

    Returns jittered boxes [M, 4] and a point within each object [M, 1, 2], in px, and which prompts are points, bool [M].
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    jittered = (boxes + BOX_JITTER * sides * torch.randn_like(boxes)).clamp(0, SIZE)
    pixel = torch.multinomial(masks.flatten(1).float(), 1)
    points = torch.stack([pixel % SIZE, pixel // SIZE], -1).float()
    return jittered, points, torch.rand(len(boxes), device=boxes.device) < POINT_SHARE


def embed_prompts(model: Any, boxes: Tensor, points: Tensor, is_point: Tensor) -> Tensor:
    """Two tokens per prompt, the corners of a box or a point and padding; [M, 2, C]."""
    encoder = model.prompt_encoder
    box_tokens = encoder(None, boxes, None)[0]
    point_tokens = encoder((points, torch.ones_like(points[..., 0])), None, None)[0]
    return torch.where(is_point[:, None, None], point_tokens, box_tokens)


def decode(model: Any, grids: Tensor, prompt_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mask logits [M, 4, 64, 64] and their predicted IoU [M, 4], from image embeddings [M, C, 16, 16], one per prompt.

    Mask 0 is the single answer; masks 1 to 3 are the alternatives of an ambiguous prompt.
    This is MaskDecoder.predict_masks (segment_anything/modeling/mask_decoder.py), with one difference: that function
    takes many prompts of one image, and here each prompt has its own image embedding.
    """
    decoder, encoder = model.mask_decoder, model.prompt_encoder
    m, c, h, w = grids.shape
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(m, -1, -1), prompt_tokens], 1)
    src = grids + encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    hs, src = decoder.transformer(src, encoder.get_dense_pe().expand(m, -1, -1, -1), tokens)
    upscaled = decoder.output_upscaling(src.transpose(1, 2).reshape(m, c, h, w))  # [M, C/8, 64, 64]
    hyper_in = torch.stack([mlp(hs[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1)
    masks = (hyper_in @ upscaled.flatten(2)).unflatten(-1, upscaled.shape[-2:])
    return masks, decoder.iou_prediction_head(hs[:, 0])


def loss(logits: Tensor, predicted_iou: Tensor, masks: Tensor) -> Tensor:
    """Loss of mask logits [M, 4, 64, 64] and predicted IoU [M, 4] against true masks bool [M, 64, 64].

    Cross-entropy and dice loss (Milletari et al. 2016, arXiv 1606.04797) of the single answer and of the best
    alternative, and the squared error of the predicted IoU, as in SAM (arXiv 2304.02643, appendix A).
    SAM uses focal loss instead of cross-entropy; this, and the weights, are ours.
    """
    target = masks[:, None].expand_as(logits).float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * target).sum((2, 3)) + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
    mask_loss = 5 * entropy + dice  # [M, 4]
    with torch.no_grad():
        predicted = logits > 0
        intersection = (predicted & masks[:, None]).sum((2, 3))
        true_iou = intersection / (predicted | masks[:, None]).sum((2, 3)).clamp_min(1)
    return mask_loss[:, 0].mean() + 0.2 * mask_loss[:, 1:].amin(1).mean() + F.mse_loss(predicted_iou, true_iou)


def run(scratch: Path, recipe: Recipe = RECIPE, n_scenes: int = N_SCENES) -> Path:
    """Train the segmenter and return the folder it is saved in."""
    torch.manual_seed(0)
    model = build()
    scenes, truth = load_scenes(cache_folder(scratch), n_scenes)
    rows_with_objects = np.flatnonzero(scenes.count > 0)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).choice(rows_with_objects, size=recipe.batch))
        batch = truth.select(rows)
        masks, boxes = (torch.from_numpy(a).to(device()) for a in (batch.masks, batch.boxes))
        image_index, slot = torch.nonzero(masks.flatten(2).any(2), as_tuple=True)
        masks = masks[image_index, slot]  # [M, 64, 64]
        prompts = sample_prompts(boxes[image_index, slot], masks)
        x = torch.from_numpy(batch.images).to(device()).permute(0, 3, 1, 2).float()
        gain = torch.empty(len(x), 1, 1, 1, device=x.device).uniform_(0.75, 1.2)
        with autocast():
            grids = model.image_encoder(model.preprocess((x * gain).clamp(0, 255)))
            logits, predicted_iou = decode(model, grids[image_index], embed_prompts(model, *prompts))
        return loss(logits.float(), predicted_iou.float(), masks)

    train(model, loss_at, recipe, scratch)
    sam_builder.save(model, CONFIG, scratch / "model")
    return scratch / "model"
