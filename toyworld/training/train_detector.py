"""The zero-shot detector: a small OWL-ViT that finds 'red star', 'card with the letter A' or 'person waving'.

Shapes: N pictures, P phrases, Q = 64 patches of 8 px, each with one box and P scores.
"""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss
from transformers import CLIPTokenizer, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor

from emuedit.models.image_tensors import from_uint8
from toyworld.scenes.palette import SIZE
from toyworld.training import tokenizer as tokens
from toyworld.training.detection_phrases import ask, means
from toyworld.training.render_cache import rendered
from toyworld.training.training_run import Recipe, bf16, device, train

RECIPE = Recipe(steps=2000, batch=64, lr=1e-3, warmup_steps=150, decay_share=0.45, ema_decay=0.997)
PHRASES = 64  # of a batch, asked of each of its pictures
CONTEXT = 24  # tokens of a phrase
WIDTH = 128
PATCH_PX = 8
POSITIVE_PX, IGNORED_PX = 6.0, 9.0  # from an object's centre: nearer patches must find it, farther ones must not


def build(n_tokens: int = tokens.N_TOKENS) -> OwlViTForObjectDetection:
    """Random weights: vision of 4 layers, text of 2; scores start near 0.01, as focal loss wants."""
    shared = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 4 * WIDTH, "hidden_act": "gelu"}
    text = {
        "vocab_size": n_tokens,
        "num_hidden_layers": 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": n_tokens - 2,
        "eos_token_id": n_tokens - 1,
        "pad_token_id": n_tokens - 1,
    }
    vision = {"num_hidden_layers": 4, "image_size": SIZE, "patch_size": PATCH_PX}
    config = OwlViTConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=WIDTH)
    config._attn_implementation = "eager"  # on a CPU the fused attention's backward takes three times as long
    model = OwlViTForObjectDetection(config)
    for layer in (*model.box_head.modules(), *model.class_head.modules()):
        if isinstance(layer, nn.Linear):  # transformers draws these with unit spread: boxes start saturated and stay so
            nn.init.trunc_normal_(layer.weight, std=WIDTH**-0.5)
            nn.init.zeros_(layer.bias)
    for layer in (model.box_head.dense2, model.class_head.logit_shift, model.class_head.logit_scale):
        nn.init.zeros_(layer.weight)
    nn.init.constant_(model.class_head.logit_shift.bias, -0.5)
    nn.init.constant_(model.class_head.logit_scale.bias, 8.0)
    model.owlvit.logit_scale.requires_grad_(False)  # of the contrastive head, which detection does not use
    return model


def save(model: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The transformers folder: weights, config, processor."""
    half = (0.5, 0.5, 0.5)
    shown = OwlViTImageProcessor(size={"height": SIZE, "width": SIZE}, do_center_crop=False, image_mean=half, image_std=half)
    model.save_pretrained(folder)
    OwlViTProcessor(image_processor=shown, tokenizer=tokenizer).save_pretrained(folder)


def look(model: OwlViTForObjectDetection, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Every phrase asked of every picture: logits [N, Q, P] and boxes [N, Q, 4] (cx cy w h in [0, 1])."""
    grid = model.image_embedder(x)[0]  # [N, 8, 8, D]
    patches = grid.flatten(1, 2)
    known = model.owlvit.text_model(input_ids=ids).pooler_output
    queries = F.normalize(model.owlvit.text_projection(known), dim=-1)  # [P, D]
    logits = model.class_predictor(patches, queries.expand(len(x), -1, -1))[0]
    return logits, model.box_predictor(patches, grid)


def assign(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Which object each patch should find, by the distance of centres.

    Boxes [N, 3, 4] in px, zeros where there is none -> object [N, Q] and px to it [N, Q].
    """
    axis = torch.arange(PATCH_PX / 2, SIZE, PATCH_PX, device=boxes.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    patches = torch.stack([x, y], -1).reshape(1, -1, 1, 2)
    centres = (boxes[..., :2] + boxes[..., 2:])[:, None] / 2  # [N, 1, 3, 2]
    away = (patches - centres).norm(dim=-1)  # [N, Q, 3]
    away = away.masked_fill((boxes[..., 2] <= boxes[..., 0])[:, None], torch.inf)
    nearest = away.min(-1)
    return nearest.indices, nearest.values


def loss(logits: Tensor, found: Tensor, boxes: Tensor, meant: Tensor) -> Tensor:
    """Focal loss on the scores, L1 and GIoU on the boxes of the patches that lie on objects.

    Logits [N, Q, P], found [N, Q, 4] in [0, 1], boxes [N, 3, 4] in px, meant bool [N, 3, P].
    """
    nearest, px = assign(boxes)
    on = px <= POSITIVE_PX
    target = torch.gather(meant, 1, nearest[..., None].expand(-1, -1, meant.shape[-1])) & on[..., None]
    focal = sigmoid_focal_loss(logits, target.float(), alpha=0.5, gamma=1.5)
    clear = on | (px > IGNORED_PX)
    said = (focal * clear[..., None]).sum() / target.sum().clamp_min(1)
    if not on.any():  # a batch of empty scenes has no boxes to be right about
        return said
    x, y, w, h = found[on].unbind(-1)
    got = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    want = torch.gather(boxes / SIZE, 1, nearest[..., None].expand(-1, -1, 4))[on]
    return said + 5 * F.l1_loss(got, want) + 2 * generalized_box_iou_loss(got, want, reduction="mean")


def jittered(x: Tensor) -> Tensor:
    """Pictures with other contrast and brightness, each its own; [N, 3, H, W] in [-1, 1]."""
    gain, shift = torch.empty(2, len(x), 1, 1, 1, device=x.device)
    return (x * gain.uniform_(0.75, 1.2) + shift.uniform_(-0.15, 0.15)).clamp(-1, 1)


def run(scratch: Path, recipe: Recipe = RECIPE, n_pool: int | None = None) -> Path:
    """Train it and return the folder it was saved in."""
    tokenizer = tokens.build(scratch / "tokenizer")
    torch.manual_seed(0)
    model = build(len(tokenizer))
    all_scenes, known = rendered(scratch.parent / "pool", *([n_pool] if n_pool else []))
    n = len(all_scenes)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).integers(n, size=recipe.batch))
        say = random.Random(step)
        seen = all_scenes[rows]
        asked = ask(seen, PHRASES, say)
        ids = tokenizer([phrase.text(say) for phrase in asked], padding=True, return_tensors="pt").input_ids
        x = jittered(from_uint8(known.images[rows]).to(device()))
        with bf16():
            logits, found = look(model, x, ids.to(device()))
        boxes, meant = known.rows(rows).boxes, means(asked, seen)
        return loss(logits.float(), found.float(), *(torch.from_numpy(a).to(device()) for a in (boxes, meant)))

    train(model, loss_at, recipe, scratch)
    save(model, tokenizer, scratch / "model")
    return scratch / "model"
