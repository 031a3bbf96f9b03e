"""Training of the DINO scorer: a small DINOv2-style ViT, trained by self-distillation without labels.

Shapes: B images, V views of each, K prototypes, D the width.
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
from toyworld.training.render_cache import N_MIXED, cache_folder, load_mixed
from toyworld.training.training_run import Recipe, autocast, device, train

RECIPE = Recipe(steps=600, batch=48, lr=1e-3, warmup_steps=100, decay_share=0.5, ema_decay=0.99, weight_decay=0.04)
WIDTH = 128
PROTOTYPES = 512
LOCAL_PX, LOCAL_VIEWS = 32, 2
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05
TEACHER_MOMENTUM = 0.985  # at the start; it rises to 1 at the end


def build() -> Dinov2Model:
    """A ViT with random weights: 4 layers, patches of 8 px, 0.8 M parameters."""
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=4, image_size=SIZE, patch_size=8,
        layerscale_value=1.0, drop_path_rate=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"  # on a CPU the backward pass of fused attention takes three times as long
    return Dinov2Model(config)


def save(model: Dinov2Model, folder: Path) -> None:
    """Write a transformers folder: weights, config and image processor."""
    model.save_pretrained(folder)
    half, size = [0.5, 0.5, 0.5], {"height": SIZE, "width": SIZE}
    BitImageProcessor(size=size, do_center_crop=False, image_mean=half, image_std=half).save_pretrained(folder)


class StudentTeacher(nn.Module):
    """Two ViTs, each with a head that scores K prototypes. The teacher is an EMA of the student."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = _PrototypeScorer(), _PrototypeScorer()
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student."""
        for teacher, student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            teacher.lerp_(student, 1 - momentum)


class _PrototypeScorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = build()
        self.head = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Linear(64, PROTOTYPES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        class_token = self.vit(pixel_values=x).last_hidden_state[:, 0]  # [B, D]
        return F.linear(F.normalize(self.head(class_token), dim=-1), F.normalize(self.prototypes.weight, dim=-1))  # [B, K]


def random_view(x: Tensor, min_side: float, max_side: float, px: int) -> Tensor:
    """A random square crop of each image, resized to px x px, with random brightness, contrast and colour shift.

    The side of the crop is `min_side` to `max_side` of the image's. Images are not mirrored.
    """
    n = len(x)
    side = x.new_empty(n).uniform_(min_side, max_side)
    centre = (2 * torch.rand_like(x[:, :2, 0, 0]) - 1) * (1 - side)[:, None]
    theta = x.new_zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = centre
    crop = F.grid_sample(x, F.affine_grid(theta, [n, 3, px, px], align_corners=False), align_corners=False)
    shift = x.new_empty(n, 3, 1, 1).uniform_(-0.06, 0.06) + x.new_empty(n, 1, 1, 1).uniform_(-0.12, 0.12)
    return (crop * x.new_empty(n, 1, 1, 1).uniform_(0.75, 1.2) + shift).clamp(-1, 1)


@torch.no_grad()
def centre_scores(scores: Tensor, n_iterations: int = 3) -> Tensor:
    """Teacher scores to targets [B, K]: rows sum to 1 and all prototypes are used equally, which prevents collapse.

    Sinkhorn-Knopp centring (Caron et al. 2020, arXiv 2006.09882; used by DINOv2, arXiv 2304.07193).
    """
    q = torch.exp((scores - scores.max()).double() / TEACHER_TEMPERATURE)
    for _ in range(n_iterations):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-30) / q.shape[1]
        q = q / q.sum(1, keepdim=True).clamp_min(1e-30) / q.shape[0]
    return (q * q.shape[0]).float()


def loss(networks: StudentTeacher, x: Tensor) -> Tensor:
    """Cross-entropy of the student on every view against the teacher on another large view (DINO, arXiv 2104.14294)."""
    large = [random_view(x, 0.65, 1.0, SIZE) for _ in range(2)]
    small = [random_view(x, 0.35, 0.55, LOCAL_PX) for _ in range(LOCAL_VIEWS)]
    with autocast():
        with torch.no_grad():
            teacher_scores = networks.teacher(torch.cat(large))
        large_scores = networks.student(torch.cat(large)).chunk(2)
        student_scores = [*large_scores, *networks.student(torch.cat(small)).chunk(LOCAL_VIEWS)]  # V of [B, K]
    targets = centre_scores(teacher_scores.float()).chunk(2)
    terms = [
        -(targets[a] * F.log_softmax(student_scores[b].float() / STUDENT_TEMPERATURE, -1)).sum(1).mean()
        for a in range(2)
        for b in range(len(student_scores))
        if a != b
    ]
    return torch.stack(terms).mean()


def run(scratch: Path, recipe: Recipe = RECIPE, n_images: int = N_MIXED) -> Path:
    """Train the networks and return the folder that the teacher's ViT is saved in.

    The teacher's momentum rises along a half cosine from `TEACHER_MOMENTUM` to 1 (DINO, arXiv 2104.14294).
    """
    torch.manual_seed(0)
    networks = StudentTeacher()
    images = load_mixed(cache_folder(scratch), n_images)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).integers(len(images), size=recipe.batch))
        networks.update_teacher(1 - (1 - TEACHER_MOMENTUM) * (math.cos(math.pi * step / recipe.steps) + 1) / 2)
        return loss(networks, from_uint8(images[rows]).to(device()))

    train(networks, loss_at, recipe, scratch)
    save(networks.teacher.vit, scratch / "model")
    return scratch / "model"
