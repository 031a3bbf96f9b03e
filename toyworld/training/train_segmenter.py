"""The segmenter: a small Sam that turns a box, or a point, into the mask of the object there.

Shapes: N pictures, M prompts among them, C = 64 channels of the decoder, a grid of 16x16 patches of 4 px.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emuedit.models import sam_builder
from toyworld.scenes.palette import SIZE
from toyworld.training.render_cache import rendered
from toyworld.training.training_run import Recipe, bf16, device, train

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
POINT_SHARE = 0.15  # of the prompts are a point, the others a box
BOX_JITTER = 0.08  # standard deviation of an edge, in sides of the box


def build(config: sam_builder.SamConfig = CONFIG) -> Any:
    """Random weights, segment_anything's own classes; 0.6 M parameters."""
    return sam_builder.build(config)


def prompts(boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loose boxes [M, 4] and a point within each object [M, 1, 2], in px, and which prompt is a point [M].

    Boxes [M, 4] in px and masks bool [M, 64, 64] are the truth.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    loose = (boxes + BOX_JITTER * sides * torch.randn_like(boxes)).clamp(0, SIZE)
    chosen = torch.multinomial(masks.flatten(1).float(), 1)
    points = torch.stack([chosen % SIZE, chosen // SIZE], -1).float()
    return loose, points, torch.rand(len(boxes), device=boxes.device) < POINT_SHARE


def embed(model: Any, boxes: Tensor, points: Tensor, is_point: Tensor) -> Tensor:
    """Two tokens a prompt, of a box's corners or of a point and its padding; [M, 2, C]."""
    encoder = model.prompt_encoder
    as_box = encoder(None, boxes, None)[0]
    as_point = encoder((points, torch.ones_like(points[..., 0])), None, None)[0]
    return torch.where(is_point[:, None, None], as_point, as_box)


def decode(model: Any, grids: Tensor, prompted: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [M, 4, 64, 64] (logits) and their guessed IoU [M, 4]; grids [M, C, 16, 16], one a prompt.

    MaskDecoder.predict_masks (segment_anything/modeling/mask_decoder.py) takes many prompts of one picture; here every
    prompt brings its own. Mask 0 is the single answer, 1 to 3 are the alternatives.
    """
    decoder, encoder = model.mask_decoder, model.prompt_encoder
    m, c, h, w = grids.shape
    answers = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([answers.expand(m, -1, -1), prompted], 1)
    src = grids + encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    hs, src = decoder.transformer(src, encoder.get_dense_pe().expand(m, -1, -1, -1), tokens)
    fine = decoder.output_upscaling(src.transpose(1, 2).reshape(m, c, h, w))  # [M, C/8, 64, 64]
    filters = torch.stack([mlp(hs[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1)
    masks = (filters @ fine.flatten(2)).unflatten(-1, fine.shape[-2:])
    return masks, decoder.iou_prediction_head(hs[:, 0])


def loss(logits: Tensor, guessed: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy and dice (Milletari et al. 2016, arXiv 1606.04797) of the single answer and of the best alternative,
    and the squared error of the guessed IoU, as in Sam (arXiv 2304.02643, appendix A).
    """
    want = masks[:, None].expand_as(logits).float()
    entropy = F.binary_cross_entropy_with_logits(logits, want, reduction="none").mean((2, 3))
    shown = logits.sigmoid()
    dice = 1 - (2 * (shown * want).sum((2, 3)) + 1) / (shown.sum((2, 3)) + want.sum((2, 3)) + 1)
    each = 5 * entropy + dice  # [M, 4]
    with torch.no_grad():
        hard = logits > 0
        overlap = (hard & masks[:, None]).sum((2, 3)) / (hard | masks[:, None]).sum((2, 3)).clamp_min(1)
    return each[:, 0].mean() + 0.2 * each[:, 1:].amin(1).mean() + F.mse_loss(guessed, overlap)


def run(scratch: Path, recipe: Recipe = RECIPE, n_pool: int | None = None) -> Path:
    """Train it and return the folder it was saved in."""
    torch.manual_seed(0)
    model = build()
    all_scenes, known = rendered(scratch.parent / "pool", *([n_pool] if n_pool else []))
    peopled = np.flatnonzero(all_scenes.count > 0)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).choice(peopled, size=recipe.batch))
        part = known.rows(rows)
        masks, boxes = (torch.from_numpy(a).to(device()) for a in (part.masks, part.boxes))
        of, slot = torch.nonzero(masks.flatten(2).any(2), as_tuple=True)
        masks = masks[of, slot]  # [M, 64, 64]
        prompt = prompts(boxes[of, slot], masks)
        x = torch.from_numpy(part.images).to(device()).permute(0, 3, 1, 2).float()
        gain = torch.empty(len(x), 1, 1, 1, device=x.device).uniform_(0.75, 1.2)
        with bf16():
            grids = model.image_encoder(model.preprocess((x * gain).clamp(0, 255)))
            logits, guessed = decode(model, grids[of], embed(model, *prompt))
        return loss(logits.float(), guessed.float(), masks)

    train(model, loss_at, recipe, scratch)
    sam_builder.save(model, CONFIG, scratch / "model")
    return scratch / "model"
