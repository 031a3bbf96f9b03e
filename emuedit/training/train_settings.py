"""The settings of a training run: optimizer, schedule, batches and loss. The stage `train` adds settings of where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from emuedit import config
from emuedit.models.objective import Objective
from emuedit.training.lora import LAYERS_WITH_NEW_INPUTS, LoraSettings
from emuedit.training.loss import ConditionDropout, LossWeights, refuse_min_snr
from emuedit.training.optim.lr_schedule import Decay, LrSchedule
from emuedit.training.optim.optimizers import OptimizerName
from emuedit.training.presets import with_preset

NEW_WEIGHTS = (*(f"net.unet.{layer}." for layer in LAYERS_WITH_NEW_INPUTS), "net.table.")
"""Prefixes of parameters that are new or have new inputs, compared with the base model."""
BY_REGION = {"mask_balance": 0.0, "background_weight": 1.0, "change_loss_weight": 0.0, "change_mask_balance": 0.0}
"""Loss weights that need a change-mask head, and the values at which they have no effect."""
_NO_MIN_SNR = "set train.min_snr_gamma to null (a preset may have set it)"
TaskWeight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TrainSettings(config.Params):
    """Settings of a training run."""

    preset: str | None = None
    """Preset with default settings: toy, sd15-256, sd15-512, sdxl-512 or emu-edit (`presets/`); keys given here override it."""
    seed: int = Field(0, ge=0)
    """Seed of the task embedding, adapters (LoRA), the order of pairs, timesteps, noise and dropout."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the network's computations (autocast): auto, float32, bfloat16 or float16 (GPU only).
    Trained weights, gradients and optimizer are float32."""
    objective: Objective = "base"
    """Prediction type: base (as the base model), epsilon, v_prediction, sample or flow."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule, so that the last timestep is pure noise (Lin et al., arXiv 2305.08891)."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Min-SNR weighting of timesteps: min(SNR, gamma) on the clean latents (Hang et al., arXiv 2303.09556); None: off."""
    change_mask: bool = True
    """Train a change-mask head. False: no head, and weights by region in `loss_weights` are ignored, i.e. plain Eq. 2."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Pairs per step, over all processes and accumulation steps."""
    accumulation_steps: int = Field(1, ge=1)
    """A pass has at most batch_size / accumulation_steps samples: more steps need less memory, with the same result. The passes
    are divided among the processes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time, a fraction of the memory."""
    compile: bool = False
    """Compile the U-Net with torch.compile; takes minutes on a GPU, longer on a CPU; pays off in long runs on a GPU."""
    cuda_graph: bool = False
    """Launch the passes of a step as one CUDA graph: for a small U-Net on one GPU, whose kernels run faster than the CPU launches
    them. Not with several processes, image sizes or accumulation steps, nor with float16. It does not share activation memory
    with evaluations, so it needs more memory than estimated."""
    optimizer: OptimizerName = "adamw"
    """adamw, or with 8-bit state adamw_8bit or paged_adamw_8bit (bitsandbytes, on a GPU)."""
    lora: LoraSettings | None = None
    """Train low-rank adapters of the U-Net's attention instead of all its weights; None: train all weights."""
    lr: float = Field(gt=0)
    """Highest learning rate."""
    lr_mult_new: float = Field(1.0, gt=0)
    """Factor of `lr` for new layers: first convolution, class projection, task embedding. Ours."""
    lr_mult_text: float = Field(0.0, ge=0)
    """Factor of `lr` for the base model's text encoders; 0: frozen (InstructPix2Pix, Emu Edit)."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from zero."""
    decay_share: float = Field(0.4, ge=0, le=1)
    """Fraction of the steps, at the end, in which the rate decays to zero."""
    decay: Decay = "linear"
    """Shape of the decay: linear or cosine."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of AdamW's average of squared gradients (0.999: Kingma and Ba, arXiv 1412.6980)."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the EMA weights, which are published; smaller at the start."""
    ema_device: Literal["same", "cpu"] = "same"
    """Device of the EMA: same as the weights, or CPU with an update every eighth step and at the end (not with FSDP)."""
    ema_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the EMA; bfloat16 uses stochastic rounding."""
    task_embedding_dim: int = Field(32, ge=1)
    """D_v, the width of a task embedding. Ours; the paper's is unknown."""
    task_balance: float = Field(0.5, ge=0, le=1)
    """Tasks are sampled in proportion to (their pairs)^task_balance: 0: uniformly, 1: by frequency."""
    task_weights: dict[str, TaskWeight] = Field(default={})
    """Task -> factor of its sampling rate, default 1. To leave a task out, leave it out of `instructions.tasks`."""
    replay_share: float = Field(0.2, ge=0, lt=1)
    """Share of replayed pairs in the samples, when continuing an editor with a replay sample (`replay/`). Ours."""
    start_share: float = Field(0.0, ge=0, lt=1)
    """Share of the start's weights in the published ones, (1 - share) theta_trained + share theta_start, for an editor's start.
    It keeps more of what the start knew (WiSE-FT, Wortsman et al., arXiv 2109.01903)."""
    resolution: int | None = Field(None, ge=8)
    """Training resolution: images have about resolution² pixels; None: the base model's."""
    max_aspect_ratio: float = Field(2.0, ge=1)
    """Images are cropped to the nearest of several aspect ratios up to this one; 1: squares."""
    flip: bool = True
    """Mirror half of the pairs whose instruction mentions no side and no letters."""
    dropout: ConditionDropout = ConditionDropout()
    """Condition dropout."""
    loss_weights: LossWeights = LossWeights()
    """Weights of the parts of the loss."""
    held_out_share: float = Field(0.05, ge=0, lt=1)
    """Share of images whose pairs are held out: of captions, or of the user's own images. Of more pairs than 2000 / share, about
    2000 are held out."""
    eval_every_steps: int = Field(100, ge=1)
    """Steps between evaluations of the held-out loss; it is also evaluated after the last step."""
    log_every_steps: int = Field(10, ge=1)
    """Steps between lines of stats.jsonl."""
    save_every_s: float = Field(60.0, ge=0)
    """Seconds between saves: progress that a kill may lose, besides `log_every_steps`. The actual interval is at least twenty
    times the duration of a save, since the state of a large U-Net has many GB; 0: save every step."""
    stored_dtype: Literal["float16", "float32"] = "float16"
    """Number format of the published weights."""

    @model_validator(mode="after")
    def _check_min_snr(self) -> Self:
        if self.zero_terminal_snr:
            self.check_pure_noise_step("zero_terminal_snr")
        elif self.objective == "flow":
            refuse_min_snr(self.min_snr_gamma, "objective flow", _NO_MIN_SNR)
        return self

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A section merged over its preset. Raises ParamsError for an unknown preset."""
        return with_preset(values)

    def check_pure_noise_step(self, setting: str) -> None:
        """Raise ValueError if the last timestep, which is pure noise with this `setting`, has no weight or is never drawn."""
        refuse_min_snr(self.min_snr_gamma, setting, _NO_MIN_SNR)
        if self.loss_weights.timestep_sampling == "logit_normal":
            raise ValueError(
                f"want timestep_sampling power with {setting}, got logit_normal: it draws 1 of 240,000 timesteps from the last "
                "hundredth, with which every edit starts; remove it"
            )

    def ignored_loss_weights(self) -> dict[str, float]:
        """The loss weights by region that have no effect, because there is no change-mask head."""
        weights = {name: getattr(self.loss_weights, name) for name in BY_REGION}
        return {} if self.change_mask else {name: value for name, value in weights.items() if value != BY_REGION[name]}

    @property
    def schedule(self) -> LrSchedule:
        """The learning-rate schedule."""
        return LrSchedule(self.steps, self.lr, self.warmup_steps, self.decay_share, self.decay)

    def lr_mult(self, parameter: str) -> float:
        """Factor of the learning rate for a parameter of `TrainableEditor`, by its name."""
        if parameter.startswith(NEW_WEIGHTS):
            return self.lr_mult_new
        return self.lr_mult_text if parameter.startswith("text.") else 1.0
