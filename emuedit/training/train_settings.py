"""The settings of a training run: optimizer, schedule, batches and loss. The stage `train` adds where it runs."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from emuedit import config
from emuedit.training.loss import ConditionDropout, LossWeights
from emuedit.training.schedule import Decay, Schedule

NEW_WEIGHTS = ("net.unet.conv_in.", "net.unet.class_embedding.", "net.table.")
"""Parameters that the base model does not have, or has for other inputs."""


class TrainSettings(config.Params):
    """Settings of a training run."""

    seed: int = Field(0, ge=0)
    """Seed of the task embedding, the order of pairs, timesteps, noise and dropout."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the network's computations: auto, float32 or bfloat16 (autocast); weights and optimizer are float32."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Pairs per step."""
    lr: float = Field(gt=0)
    """Highest learning rate."""
    lr_mult_new: float = Field(1.0, gt=0)
    """Factor of `lr` for what the base model does not have: first convolution, class projection, task embedding. Ours."""
    lr_mult_text: float = Field(0.0, ge=0)
    """Factor of `lr` for the base model's text encoders; 0: they are frozen (InstructPix2Pix, Emu Edit)."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the rate rises from zero."""
    decay_share: float = Field(0.4, ge=0, le=1)
    """Last share of the steps, in which the rate falls to zero."""
    decay: Decay = "linear"
    """How it falls: linear or cosine."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are published; smaller at the start."""
    task_embedding_dim: int = Field(32, ge=1)
    """D_v, the width of a task embedding. Ours; the paper's is unknown."""
    task_balance: float = Field(0.5, ge=0, le=1)
    """Tasks are drawn in proportion to (their pairs)^task_balance: 0 uniformly, 1 as often as they occur."""
    flip: bool = True
    """Mirror half of the pairs whose instruction names no side and no letters."""
    dropout: ConditionDropout = ConditionDropout()
    """How often a condition is left out."""
    loss_weights: LossWeights = LossWeights()
    """How the parts of the loss are weighted."""
    held_out_share: float = Field(0.05, ge=0, lt=1)
    """Share of captions whose pairs are kept from training."""
    eval_every_steps: int = Field(100, ge=1)
    """Steps between two evaluations of the held-out loss."""
    log_every_steps: int = Field(10, ge=1)
    """Steps between two lines of stats.jsonl."""
    save_every_s: float = Field(60.0, ge=0)
    """Seconds between two saves: what a kill may cost."""
    stored_dtype: Literal["float16", "float32"] = "float16"
    """Number format of the published weights."""

    @property
    def schedule(self) -> Schedule:
        """The learning-rate schedule."""
        return Schedule(self.steps, self.lr, self.warmup_steps, self.decay_share, self.decay)

    def lr_mult(self, parameter: str) -> float:
        """Factor of the learning rate for a parameter of `TrainableEditor`, by its name."""
        if parameter.startswith(NEW_WEIGHTS):
            return self.lr_mult_new
        return self.lr_mult_text if parameter.startswith("text.") else 1.0

    def autocast(self, device: torch.device) -> torch.autocast:
        """Autocast to the number format of the computations."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")
