"""The DINO judge: a small DINOv2-style ViT trained by self-distillation, without a label, on pictures of every kind.

Shapes: B pictures, V views of each, K prototypes, D the width.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from emuedit.models.image_tensors import from_uint8
from toyworld.scenes.palette import SIZE
from toyworld.training.render_cache import mixed_pictures
from toyworld.training.training_run import Recipe, bf16, device, train

RECIPE = Recipe(steps=600, batch=48, lr=1e-3, warmup_steps=100, decay_share=0.5, ema_decay=0.99, weight_decay=0.04)
WIDTH = 128
PROTOTYPES = 512
LOCAL_PX, LOCAL_VIEWS = 32, 2
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05
SLOWNESS = 0.985  # of the teacher at the start; 1 at the end


def build() -> Dinov2Model:
    """Random weights: 4 layers, patches of 8 px, 0.8 M parameters."""
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=4, image_size=SIZE, patch_size=8,
        layerscale_value=1.0, drop_path_rate=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"  # on a CPU the fused attention's backward takes three times as long
    return Dinov2Model(config)


def save(model: Dinov2Model, folder: Path) -> None:
    """The transformers folder: weights, config, image processor."""
    model.save_pretrained(folder)
    half, side = [0.5, 0.5, 0.5], {"height": SIZE, "width": SIZE}
    BitImageProcessor(size=side, do_center_crop=False, image_mean=half, image_std=half).save_pretrained(folder)


class Pair(nn.Module):
    """Student and teacher, each a ViT with a head that scores K prototypes; the teacher follows the student slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = _Scorer(), _Scorer()
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    @torch.no_grad()
    def follow(self, slowness: float) -> None:
        """teacher <- slowness * teacher + (1 - slowness) * student."""
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - slowness)


class _Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = build()
        self.head = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Linear(64, PROTOTYPES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.vit(pixel_values=x).last_hidden_state[:, 0]  # [B, D]
        return F.linear(F.normalize(self.head(seen), dim=-1), F.normalize(self.prototypes.weight, dim=-1))  # [B, K]


def view(x: Tensor, smallest: float, largest: float, px: int) -> Tensor:
    """A random crop of each picture, `smallest` to `largest` of its side, shown at px x px in other light; no mirror."""
    n = len(x)
    side = x.new_empty(n).uniform_(smallest, largest)
    at = (2 * torch.rand_like(x[:, :2, 0, 0]) - 1) * (1 - side)[:, None]
    theta = x.new_zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = at
    crop = F.grid_sample(x, F.affine_grid(theta, [n, 3, px, px], align_corners=False), align_corners=False)
    light = x.new_empty(n, 3, 1, 1).uniform_(-0.06, 0.06) + x.new_empty(n, 1, 1, 1).uniform_(-0.12, 0.12)
    return (crop * x.new_empty(n, 1, 1, 1).uniform_(0.75, 1.2) + light).clamp(-1, 1)


@torch.no_grad()
def balanced(scores: Tensor, rounds: int = 3) -> Tensor:
    """The teacher's targets [B, K]: rows sum to 1, prototypes are used evenly, so that nothing collapses.

    Sinkhorn-Knopp centring (Caron et al. 2020, arXiv 2006.09882; used by DINOv2, arXiv 2304.07193).
    """
    q = torch.exp((scores - scores.max()).double() / TEACHER_TEMPERATURE)
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-30) / q.shape[1]
        q = q / q.sum(1, keepdim=True).clamp_min(1e-30) / q.shape[0]
    return (q * q.shape[0]).float()


def loss(pair: Pair, x: Tensor) -> Tensor:
    """Cross-entropy of the student on every view against the teacher on the other large view (DINO, arXiv 2104.14294)."""
    large = [view(x, 0.65, 1.0, SIZE) for _ in range(2)]
    small = [view(x, 0.35, 0.55, LOCAL_PX) for _ in range(LOCAL_VIEWS)]
    with bf16():
        with torch.no_grad():
            taught = pair.teacher(torch.cat(large))
        said = [*pair.student(torch.cat(large)).chunk(2), *pair.student(torch.cat(small)).chunk(LOCAL_VIEWS)]
    targets = balanced(taught.float()).chunk(2)
    terms = [
        -(targets[a] * F.log_softmax(said[b].float() / STUDENT_TEMPERATURE, -1)).sum(1).mean()
        for a in range(2)
        for b in range(len(said))
        if a != b
    ]
    return torch.stack(terms).mean()


def run(scratch: Path, recipe: Recipe = RECIPE, n_pool: int | None = None) -> Path:
    """Train it and return the folder the teacher's ViT was saved in."""
    torch.manual_seed(0)
    pair = Pair()
    pictures = mixed_pictures(scratch.parent / "pool", *([n_pool] if n_pool else []))

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).integers(len(pictures), size=recipe.batch))
        pair.follow(1 - (1 - SLOWNESS) * (math.cos(math.pi * step / recipe.steps) + 1) / 2)
        return loss(pair, from_uint8(pictures[rows]).to(device()))

    train(pair, loss_at, recipe, scratch)
    save(pair.teacher.vit, scratch / "model")
    return scratch / "model"
