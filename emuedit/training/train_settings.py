"""The settings of a training run: optimizer, schedule, batches and loss. The stage `train` adds where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from emuedit import config
from emuedit.models.objective import Objective
from emuedit.training.lora import LoraSettings
from emuedit.training.loss import ConditionDropout, LossWeights
from emuedit.training.optimizers import OptimizerName
from emuedit.training.presets import with_preset
from emuedit.training.schedule import Decay, Schedule

NEW_WEIGHTS = ("net.unet.conv_in.", "net.unet.class_embedding.", "net.table.")
"""Parameters that the base model does not have, or has for other inputs."""


class TrainSettings(config.Params):
    """Settings of a training run."""

    preset: str | None = None
    """Settings to start from, by name: toy, sd15-256, sd15-512, sdxl-512 or emu-edit (`presets/`); what is given here wins."""
    seed: int = Field(0, ge=0)
    """Seed of the task embedding, the order of pairs, timesteps, noise and dropout."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the network's computations (autocast): auto, float32, bfloat16 or float16, the last on a GPU only.
    Trained weights, gradients and optimizer are float32."""
    objective: Objective = "base"
    """What the network predicts: base (as the base model), epsilon, v_prediction, sample or flow."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule, so that the last timestep is noise alone (Lin et al., arXiv 2305.08891)."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weight timesteps by min(SNR, gamma) in the estimate of the clean latents (Hang et al., arXiv 2303.09556); None: alike."""
    change_mask: bool = True
    """Predict where the edit changes the picture. False turns the head and all weights by region off: plain Eq. 2."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Pairs per step, over all processes and accumulation steps."""
    accumulation_steps: int = Field(1, ge=1)
    """A pass has batch_size / accumulation_steps samples at most: the more steps, the less memory, and the result is the same.
    Each of n processes makes an n-th of the passes."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more time, a fraction of the memory."""
    compile: bool = False
    """Compile the U-Net with torch.compile: worth its minutes in long runs on a GPU."""
    cuda_graph: bool = False
    """Launch the passes of a step as one CUDA graph: for a small U-Net on one GPU, whose kernels run faster than the CPU launches
    them. Not with several processes, picture sizes or accumulation steps, nor with float16. Its activations are not shared with
    evaluations, so it takes more memory than the estimate says."""
    optimizer: OptimizerName = "adamw"
    """adamw, or with 8-bit state adamw_8bit or paged_adamw_8bit (bitsandbytes, on a GPU)."""
    lora: LoraSettings | None = None
    """Train low-rank adapters on the U-Net's attention in place of all its weights; None: all."""
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
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of AdamW's average of squared gradients (0.999: Kingma and Ba, arXiv 1412.6980)."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are published; smaller at the start."""
    ema_device: Literal["same", "cpu"] = "same"
    """Where they are kept: with the weights, or in CPU memory, updated every eighth step (not with FSDP)."""
    ema_dtype: Literal["float32", "bfloat16"] = "float32"
    """Their number format; bfloat16 rounds stochastically."""
    task_embedding_dim: int = Field(32, ge=1)
    """D_v, the width of a task embedding. Ours; the paper's is unknown."""
    task_balance: float = Field(0.5, ge=0, le=1)
    """Tasks are drawn in proportion to (their pairs)^task_balance: 0 uniformly, 1 as often as they occur."""
    task_weights: dict[str, float] = Field(default={})
    """Task -> factor of how often it is drawn, default 1."""
    replay_share: float = Field(0.2, ge=0, lt=1)
    """Share of the samples that are earlier pairs, in a training that continues an editor which kept some (`replay/`). Ours."""
    resolution: int | None = Field(None, ge=8)
    """Side in px of the square that has as many pixels as a picture in training; None: the base model's."""
    max_aspect_ratio: float = Field(2.0, ge=1)
    """Pictures are cropped to the nearest of several aspect ratios up to this one; 1: squares."""
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
    """Seconds between two saves: what a kill may cost, besides `log_every_steps`. It is at least twenty
    times what a save takes, since the state of a large U-Net has many GB; 0: every step."""
    stored_dtype: Literal["float16", "float32"] = "float16"
    """Number format of the published weights."""

    @model_validator(mode="after")
    def _check_min_snr(self) -> Self:
        if self.min_snr_gamma is not None and (self.zero_terminal_snr or self.objective == "flow"):
            got = "zero_terminal_snr" if self.zero_terminal_snr else "objective flow"
            raise ValueError(
                f"want min_snr_gamma null with {got}, got {self.min_snr_gamma}: the step of noise alone, with which every edit "
                "begins, would have no weight; set train.min_snr_gamma to null (a preset may have set it)"
            )
        return self

    @model_validator(mode="after")
    def _check_change_mask(self) -> Self:
        weights = self.loss_weights
        by_region = weights.mask_balance, weights.change_loss_weight, weights.change_mask_balance, weights.background_weight
        if not self.change_mask and by_region != (0, 0, 0, 1):
            raise ValueError(
                "want no loss_weights by region (mask_balance, background_weight, change_loss_weight, change_mask_balance) with "
                f"change_mask false, got {weights}; leave them out, or set change_mask to true"
            )
        return self

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A section with what its preset says. Raises ParamsError for an unknown preset."""
        return with_preset(values)

    @property
    def schedule(self) -> Schedule:
        """The learning-rate schedule."""
        return Schedule(self.steps, self.lr, self.warmup_steps, self.decay_share, self.decay)

    def lr_mult(self, parameter: str) -> float:
        """Factor of the learning rate for a parameter of `TrainableEditor`, by its name."""
        if parameter.startswith(NEW_WEIGHTS):
            return self.lr_mult_new
        return self.lr_mult_text if parameter.startswith("text.") else 1.0
