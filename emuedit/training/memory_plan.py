"""How a training uses memory (`MemoryPlan`), and how much of it each part needs (`MemoryEstimate`)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from emuedit.training.lora import LoraSettings
from emuedit.training.optimizers import OptimizerName

GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """How a training uses memory. Names are those of `TrainSettings` where it has them."""

    micro_batch: int = 1
    """Samples in one pass of one device: batch_size / (passes * world_size)."""
    latent: tuple[int, int, int] = (4, 64, 64)
    """Latents of one picture, (C, h, w): a side of 8 px is one latent cell in Stable Diffusion."""
    n_tokens: int = 77
    """Tokens of an instruction, L."""
    device: Literal["cuda", "cpu"] = "cuda"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    gradient_checkpointing: bool = False
    passes: int = 1
    compile: bool = False
    """torch.compile keeps fewer activations than are counted here."""
    lora: LoraSettings | None = None
    optimizer: OptimizerName = "adamw"
    ema: bool = True
    ema_device: Literal["same", "cpu"] = "same"
    ema_dtype: Literal["float32", "bfloat16"] = "float32"
    world_size: int = 1
    """Processes that train together."""
    fsdp: bool = False
    """Whether they shard weights, gradients, optimizer state and EMA, or each has all of them (DDP)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device at the moment when most is needed."""

    plan: MemoryPlan
    weights: int
    """Trained weights in float32, frozen ones in their format."""
    optimizer: int
    ema: int
    gradients: int
    weight_copies: int
    """Weights in half precision, which autocast makes in every pass."""
    activations: int
    """Kept for the backward pass."""
    temporaries: int
    """Gradients of activations, activations that are computed again, weights that FSDP gathers, buffers of the EMA's update."""
    workspace: int
    """Allocated inside of kernels."""
    context: int
    """Of the process, outside of PyTorch's allocator."""
    saved: int = field(metadata={"part": False})
    """Activations and weight copies at the end of the forward pass."""
    certain: int = field(metadata={"part": False})
    """What no setting of the allocator and no choice of kernels can avoid."""
    host: int = field(metadata={"part": False})
    """CPU memory for an EMA or an optimizer state that is kept there."""

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, which add up to `total`."""
        names = [f.name for f in fields(self) if f.name != "plan" and f.metadata.get("part", True)]
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name.replace('_', ' ')} {n / GIB:.2f}" for name, n in self.parts.items() if n >= GIB / 200)
        processes = f" on each of {self.plan.world_size} devices" if self.plan.world_size > 1 else ""
        return f"{self.total / GIB:.2f} GiB{processes} ({parts})"
