"""Memory plan of a training (`MemoryPlan`) and estimate per part (`MemoryEstimate`)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from emuedit.training.lora import LoraSettings
from emuedit.training.optim.optimizers import OptimizerName

GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """Settings that determine memory use, named as in `TrainSettings` where possible."""

    micro_batch: int = 1
    """Samples per pass and device: batch_size / (passes * world_size)."""
    latent: tuple[int, int, int] = (4, 64, 64)
    """Latents of one image, (C, h, w): one latent cell is 8 px wide in Stable Diffusion."""
    n_tokens: int = 77
    """Tokens of an instruction, L."""
    device: Literal["cuda", "cpu"] = "cuda"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    gradient_checkpointing: bool = False
    passes: int = 1
    compile: bool = False
    """torch.compile keeps fewer activations than counted here."""
    lora: LoraSettings | None = None
    optimizer: OptimizerName = "adamw"
    ema: bool = True
    ema_device: Literal["same", "cpu"] = "same"
    ema_dtype: Literal["float32", "bfloat16"] = "float32"
    world_size: int = 1
    """Processes that train together."""
    fsdp: bool = False
    """Whether weights, gradients, optimizer state and EMA are sharded (FSDP) or replicated (DDP)."""
    previews: bool = False
    """Whether previews move the VAE and the frozen text encoders to the GPU."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device at peak memory."""

    plan: MemoryPlan
    weights: int
    """Trained weights in float32, frozen ones in their format; on a CPU also the VAE and the frozen text encoders."""
    optimizer: int
    ema: int
    gradients: int
    weight_copies: int
    """Half-precision copies of weights, made by autocast in every pass."""
    activations: int
    """Activations kept for the backward pass."""
    temporaries: int
    """Gradients of activations, recomputed activations, weights gathered by FSDP, buffers of the EMA's update; during a preview
    the VAE and the frozen text encoders."""
    workspace: int
    """Workspaces of kernels."""
    context: int
    """Memory of the process outside PyTorch's allocator."""
    saved: int = field(metadata={"part": False})
    """Activations and weight copies at the end of the forward pass."""
    certain: int = field(metadata={"part": False})
    """Lower bound, independent of allocator settings and kernels."""
    host: int = field(metadata={"part": False})
    """CPU memory of an offloaded EMA or optimizer state."""

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
