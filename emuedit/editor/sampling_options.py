"""Options and results of `EditSampler.sample`. Shapes: see there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ReportStep = Callable[[int], None]
"""Called after each denoising step with the number of samples, and with 0 after the steps of a second edit (`crop`)."""


@dataclass(frozen=True)
class SamplingOptions:
    """What can be replaced, called or measured when B images are sampled; the defaults do nothing."""

    negative_prompts: Sequence[str] = ()
    """B texts that replace guidance's null text."""
    latents: Tensor | None = None
    """Standard normal noise to start from, [B, C, h, w]; None: drawn from the seeds."""
    after_step: Callable[[int, Tensor, Tensor], Tensor] | None = None
    """Called with a step's number, its timestep and z_t [B, C, h, w]; returns the latents for the next step."""
    is_interrupted: Callable[[], bool] = lambda: False
    """Called after each step and before each batch; True ends denoising: the latents are decoded as they are, and the images of
    batches that have not begun are returned unedited."""
    report: ReportStep | None = None
    """Called after each step of a batch with the number of its images."""
    measure_shifts: bool = False
    """Whether the shift of each edited image is measured, see `Edited.shifts_px`."""
    keep_reconstructions: bool = False
    """Whether the reconstructions are returned, see `Edited.reconstructions`."""

    def rows(self, rows: Sequence[int]) -> SamplingOptions:
        """The options of the images with these row indices."""
        prompts = [self.negative_prompts[row] for row in rows] if self.negative_prompts else ()
        latents = None if self.latents is None else self.latents[list(rows)]
        return dataclasses.replace(self, negative_prompts=prompts, latents=latents)


NO_OPTIONS = SamplingOptions()


_ADVICE = {
    torch.float16: 'load it with dtype="bfloat16" or "float32"',
    torch.float32: "load it again: its weights are damaged",
}


class NonFiniteEditError(RuntimeError):
    """Raised if an editor returns NaN or infinity, in most cases because float16 overflows."""

    def __init__(self, dtype: torch.dtype) -> None:
        name, advice = str(dtype).partition(".")[2], _ADVICE.get(dtype, 'load it with dtype="float32"')
        super().__init__(f"want finite values from the editor, got NaN or infinity in {name}; {advice}")


@dataclass(frozen=True)
class RawEdit:
    """Decoded edits of B images on the CPU, before pixels are preserved."""

    image: Tensor
    """Edited images, [B, 3, H, W] in [-1, 1]."""
    reconstruction: Tensor | None
    """The images as the autoencoder reconstructs them, [B, 3, H, W]; None if they are not needed: `change_threshold`
    is measured from the images or 0, and they are not kept."""
    change_probability: Tensor | None
    """Probability that a latent cell changes, [B, 1, h, w] in [0, 1]; None: the editor has no change mask."""
    learned_thresholds: Mapping[str, float] = field(default_factory=dict)
    """Task -> change threshold, of the editor's learned tasks, see `preservation.edit_weight`."""


@dataclass(frozen=True)
class Edited:
    """Result of sampling."""

    images: Tensor
    """Edited images, float32 [B, 3, H, W] on the CPU, in [-1, 1]."""
    shifts_px: tuple[float | None, ...]
    """Shift of each image against its input in px, see `preservation.measure_shifts`; None: undefined or not measured."""
    reconstructions: Tensor | None = None
    """The input images as the autoencoder reconstructs them, float32 [B, 3, H, W] on the CPU; None: not kept."""
