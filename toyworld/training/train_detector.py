"""Training of the zero-shot detector: a small OWL-ViT for phrases such as 'red star' or 'card with the letter A'.

Shapes: N images, P phrases, Q = 64 patches of 8 px, each with one box and P scores, D the width.
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
from toyworld.training.detection_phrases import match_objects, sample_phrases
from toyworld.training.render_cache import N_SCENES, cache_folder, load_scenes
from toyworld.training.training_run import Recipe, autocast, device, train

RECIPE = Recipe(steps=2000, batch=64, lr=1e-3, warmup_steps=150, decay_share=0.45, ema_decay=0.997)
N_PHRASES = 64  # per batch, shared by all of its images
CONTEXT = 24  # tokens of a phrase
WIDTH = 128
PATCH_PX = 8
POSITIVE_PX, IGNORED_PX = 6.0, 9.0
"""Distances from an object's centre: patches up to the first are positive, beyond the second negative, else ignored."""


def build(n_tokens: int = tokens.N_TOKENS) -> OwlViTForObjectDetection:
    """A detector with random weights: 4 vision and 2 text layers; initial scores near 0.01, as focal loss needs."""
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
    config._attn_implementation = "eager"  # on a CPU the backward pass of fused attention takes three times as long
    model = OwlViTForObjectDetection(config)
    for layer in (*model.box_head.modules(), *model.class_head.modules()):
        if isinstance(layer, nn.Linear):
            # transformers initialises these with unit standard deviation: the boxes would be saturated permanently
            nn.init.trunc_normal_(layer.weight, std=WIDTH**-0.5)
            nn.init.zeros_(layer.bias)
    for layer in (model.box_head.dense2, model.class_head.logit_shift, model.class_head.logit_scale):
        nn.init.zeros_(layer.weight)
    nn.init.constant_(model.class_head.logit_shift.bias, -0.5)
    nn.init.constant_(model.class_head.logit_scale.bias, 8.0)
    model.owlvit.logit_scale.requires_grad_(False)  # belongs to the contrastive head, which detection does not use
    return model


def save(model: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a transformers folder: weights, config and processor."""
    half, size = (0.5, 0.5, 0.5), {"height": SIZE, "width": SIZE}
    image_processor = OwlViTImageProcessor(size=size, do_center_crop=False, image_mean=half, image_std=half)
    model.save_pretrained(folder)
    OwlViTProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


def predict(model: OwlViTForObjectDetection, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of all phrases in all images, and boxes.

    Images x [N, 3, H, W] in [-1, 1] and token ids [P, tokens] -> logits [N, Q, P], boxes [N, Q, 4] (cx cy w h in [0, 1]).
    """
    grid = model.image_embedder(x)[0]  # [N, 8, 8, D]
    patches = grid.flatten(1, 2)
    pooled = model.owlvit.text_model(input_ids=ids).pooler_output
    phrase_embeddings = F.normalize(model.owlvit.text_projection(pooled), dim=-1)  # [P, D]
    logits = model.class_predictor(patches, phrase_embeddings.expand(len(x), -1, -1))[0]
    return logits, model.box_predictor(patches, grid)


def assign_objects(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest object of each patch, by the distance between centres.

    Boxes [N, 3, 4] in px, zeros for an empty slot -> slot of the object [N, Q] and distance to it in px [N, Q].
    """
    axis = torch.arange(PATCH_PX / 2, SIZE, PATCH_PX, device=boxes.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    patch_centres = torch.stack([x, y], -1).reshape(1, -1, 1, 2)
    box_centres = (boxes[..., :2] + boxes[..., 2:])[:, None] / 2  # [N, 1, 3, 2]
    distance_px = (patch_centres - box_centres).norm(dim=-1)  # [N, Q, 3]
    distance_px = distance_px.masked_fill((boxes[..., 2] <= boxes[..., 0])[:, None], torch.inf)
    nearest = distance_px.min(-1)
    return nearest.indices, nearest.values


def loss(logits: Tensor, predicted_boxes: Tensor, boxes: Tensor, matches: Tensor) -> Tensor:
    """Focal loss of the scores, and L1 and GIoU loss of the boxes at positive patches.

    The parts follow OWL-ViT (arXiv 2205.06230). The weights, and the assignment by distance, are ours.
    Logits [N, Q, P], predicted boxes [N, Q, 4] in [0, 1], true boxes [N, 3, 4] in px, matches bool [N, 3, P].
    """
    slots, distance_px = assign_objects(boxes)
    positive = distance_px <= POSITIVE_PX
    target = torch.gather(matches, 1, slots[..., None].expand(-1, -1, matches.shape[-1])) & positive[..., None]
    focal = sigmoid_focal_loss(logits, target.float(), alpha=0.5, gamma=1.5)
    counted = positive | (distance_px > IGNORED_PX)
    score_loss = (focal * counted[..., None]).sum() / target.sum().clamp_min(1)
    if not positive.any():  # a batch of empty scenes has no box loss
        return score_loss
    x, y, w, h = predicted_boxes[positive].unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
    true_corners = torch.gather(boxes / SIZE, 1, slots[..., None].expand(-1, -1, 4))[positive]
    l1, giou = F.l1_loss(corners, true_corners), generalized_box_iou_loss(corners, true_corners, reduction="mean")
    return score_loss + 5 * l1 + 2 * giou


def jitter_colours(x: Tensor) -> Tensor:
    """Change contrast and brightness of each image at random; [N, 3, H, W] in [-1, 1]."""
    gain, shift = torch.empty(2, len(x), 1, 1, 1, device=x.device)
    return (x * gain.uniform_(0.75, 1.2) + shift.uniform_(-0.15, 0.15)).clamp(-1, 1)


def run(scratch: Path, recipe: Recipe = RECIPE, n_scenes: int = N_SCENES) -> Path:
    """Train the detector and return the folder it is saved in."""
    tokenizer = tokens.build(scratch / "tokenizer")
    torch.manual_seed(0)
    model = build(len(tokenizer))
    scenes, truth = load_scenes(cache_folder(scratch), n_scenes)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).integers(n_scenes, size=recipe.batch))
        rng = random.Random(step)
        batch_scenes = scenes[rows]
        phrases = sample_phrases(batch_scenes, N_PHRASES, rng)
        ids = tokenizer([phrase.text(rng) for phrase in phrases], padding=True, return_tensors="pt").input_ids
        x = jitter_colours(from_uint8(truth.images[rows]).to(device()))
        with autocast():
            logits, predicted_boxes = predict(model, x, ids.to(device()))
        boxes, matches = truth.select(rows).boxes, match_objects(phrases, batch_scenes)
        return loss(logits.float(), predicted_boxes.float(), *(torch.from_numpy(a).to(device()) for a in (boxes, matches)))

    train(model, loss_at, recipe, scratch)
    save(model, tokenizer, scratch / "model")
    return scratch / "model"
