"""Sampling a picture once and its edits beside it: candidates see their source's noise, latents and attention.

Shapes: G sources, K candidates, R rows of one forward, S steps, C latent channels, h and w the size of the latents, H and W
of the pictures. Latents z[i] stand before step i; z[S] is the result.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emuedit.core import soft_mask
from emuedit.models import model_sources
from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.synthesis.attention_control import Control, controlled

MEMORYLESS = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
"""Schedulers whose step needs nothing of the steps before: a candidate may begin in the middle."""


@dataclass(frozen=True)
class Trajectory:
    """G sources on their way from noise to picture."""

    z: Tensor  # float32 [S + 1, G, C, h, w]
    text: TextCondition  # G
    guidance: float
    chance: tuple[tuple[Tensor, ...], ...]  # [S][G] states of the generators before each step; empty if none are wanted

    def __len__(self) -> int:
        return self.z.shape[1]

    @staticmethod
    def cat(*parts: Trajectory) -> Trajectory:
        """The sources of several batches, sampled alike, as one, in order."""
        chance = tuple(sum(one, ()) for one in zip(*(part.chance for part in parts), strict=True))
        text = TextCondition.cat(*(part.text for part in parts))
        return Trajectory(torch.cat([part.z for part in parts], dim=1), text, parts[0].guidance, chance)


@dataclass(frozen=True)
class Variant:
    """One candidate: another caption for a source, and how much of the source stays. Fractions are of the S steps."""

    source: int
    caption: str
    M: Tensor  # float [1, H, W] in [0, 1]: 1 where the caption rules, 0 where the source stays
    source_fraction: float  # the first part, in which the latent is the source's
    self_fraction: float  # the first part, in which self-attention takes the source's queries and keys
    blend_from: float  # between these two, after each step: z <- M z + (1 - M) z_source
    blend_to: float
    guidance: float


@dataclass(frozen=True)
class Sampler:
    """How a base_model samples sources and variants. `dtype` other than float32 runs the U-Net under autocast."""

    base_model: TextToImageModel
    steps: int
    dtype: torch.dtype = torch.float32

    @property
    def scheduler(self) -> Any:
        """A fresh scheduler, ready to step: the base_model's own, or DDIM on its noise levels where that keeps a history."""
        own = self.base_model.scheduler
        kind = type(own) if type(own).__name__ in MEMORYLESS else model_sources.library("diffusers").DDIMScheduler
        scheduler = kind.from_config(own.config)
        scheduler.set_timesteps(self.steps, device=self.base_model.device)
        return scheduler

    def sources(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> Trajectory:
        """Paint G captions as `TextToImageModel.paint` does, and keep the way. One CPU generator a source, seeded by its seed."""
        if len(captions) != len(seeds) or not captions:
            raise ValueError(f"want one seed a caption and at least one, got {len(captions)} captions and {len(seeds)} seeds")
        scheduler = self.scheduler
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        text, null = self.base_model.encode_text(captions), self.base_model.null_text(1)
        z_t = self.base_model.noise(generators) * scheduler.init_noise_sigma  # [G, C, h, w]
        z, chance = [z_t], []
        for t in scheduler.timesteps:
            eps = self._guided(scheduler, z_t, t, text, null, z_t.new_full((len(z_t),), guidance))
            chance.append(tuple(one.get_state() for one in generators) if _draws(scheduler) else ())
            z_t = _step(scheduler, eps, t, z_t, generators)
            z.append(z_t)
        return Trajectory(torch.stack(z), text, guidance, tuple(chance))

    def variants(self, trajectory: Trajectory, wanted: Sequence[Variant]) -> Tensor:
        """Sample K variants in one batch with the sources they need: latents float32 [K, C, h, w].

        In a step in which nobody needs a source (M = 1 and nothing injected), or in which a variant still is its source,
        those rows are not computed.
        """
        plan = _Plan(self.steps, wanted)
        if len(trajectory.z) != self.steps + 1:
            got = len(trajectory.z) - 1
            raise ValueError(f"want a trajectory of {self.steps} steps, got one of {got}; sample it with this sampler")
        scheduler, device = self.scheduler, trajectory.z.device
        size = (trajectory.z.shape[-2], trajectory.z.shape[-1])
        M = torch.stack([one.M for one in wanted]).to(device, torch.float32)  # [K, 1, H, W]
        M_z = soft_mask.resized(M, *size)  # [K, 1, h, w]
        of = torch.tensor([one.source for one in wanted], device=device)
        text = _leaning(self.base_model.encode_text([one.caption for one in wanted]), trajectory.text, of, M)
        strength = torch.tensor([one.guidance for one in wanted], device=device)
        z = trajectory.z[plan.start, of]  # [K, C, h, w]
        null = self.base_model.null_text(1)
        masked = [bool((one < 1).any()) for one in M]
        with controlled(self.base_model.unet) as control:
            for i, t in enumerate(scheduler.timesteps):
                rows = plan.rows(i, masked)
                if not rows.variants:
                    continue
                g, k = list(rows.sources), list(rows.variants)
                z_t = torch.cat([trajectory.z[i, g], z[k]])
                condition = TextCondition.cat(some(trajectory.text, g), some(text, k))
                guidance = torch.cat([strength.new_full((len(g),), trajectory.guidance), strength[k]])
                full = torch.cat([M.new_ones(len(g), *M.shape[1:]), M[k]])
                eps = self._guided(
                    scheduler, z_t, t, condition, null, guidance, control, rows.source_row, full, rows.inject, size
                )
                generators = [_generator(trajectory.chance[i][wanted[one].source]) for one in k] if _draws(scheduler) else []
                z[k] = _step(scheduler, eps[len(g) :], t, z[k], generators)
                blend = [one for one in k if plan.blends(one, i)]
                z[blend] = torch.lerp(trajectory.z[i + 1, of[blend]], z[blend], M_z[blend])
        return z

    def predict(self, scheduler: Any, z_t: Tensor, t: Tensor, text: TextCondition) -> Tensor:
        """One forward of the U-Net, float32 [R, C, h, w]: the base_model's prediction of whatever kind, without guidance."""
        with torch.no_grad(), torch.autocast(z_t.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.base_model.predict(scheduler.scale_model_input(z_t, t), t, text)

    def _guided(
        self,
        scheduler: Any,
        z_t: Tensor,
        t: Tensor,
        text: TextCondition,
        null: TextCondition,
        guidance: Tensor,
        control: Control | None = None,
        source_row: Sequence[int] = (),
        M: Tensor | None = None,
        inject: Sequence[bool] = (),
        size: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Classifier-free guidance with a strength [R] of its own for every row; both halves in one forward."""
        guided = bool((guidance != 1).any())
        halves = 2 if guided else 1
        if control is not None and M is not None:
            row = torch.tensor(source_row, device=z_t.device)
            active = torch.tensor(inject, device=z_t.device)
            both = torch.cat([row + half * len(row) for half in range(halves)])
            control.set(both, M.repeat(halves, 1, 1, 1), active.repeat(halves), size)
        if guided:
            text = TextCondition.cat(null.repeat(len(text)), text)
        eps = self.predict(scheduler, torch.cat([z_t] * halves), t, text)
        if not guided:
            return eps
        e_null, e_text = eps.chunk(2)
        return e_null + guidance.view(-1, 1, 1, 1) * (e_text - e_null)


@dataclass(frozen=True)
class _Rows:
    """The rows of one step: first the sources, then the variants."""

    sources: tuple[int, ...]
    variants: tuple[int, ...]
    source_row: tuple[int, ...]
    inject: tuple[bool, ...]


class _Plan:
    """Fractions as steps, and who takes part when."""

    def __init__(self, steps: int, wanted: Sequence[Variant]) -> None:
        if not wanted:
            raise ValueError("want at least one variant, got none")
        for one in wanted:
            parts = (one.source_fraction, one.self_fraction, one.blend_from, one.blend_to)
            if not all(0 <= part <= 1 for part in parts) or one.blend_from > one.blend_to:
                raise ValueError(f"fractions of the steps must lie in [0, 1], blend_from before blend_to; got {parts}")
        self.wanted = wanted
        self.start = [round(one.source_fraction * steps) for one in wanted]
        self.injected = [round(one.self_fraction * steps) for one in wanted]
        self.blend = [(round(one.blend_from * steps), round(one.blend_to * steps)) for one in wanted]

    def blends(self, k: int, i: int) -> bool:
        """Whether variant k is blended after step i."""
        return self.blend[k][0] <= i < self.blend[k][1]

    def rows(self, i: int, masked: Sequence[bool]) -> _Rows:
        """Who is computed in step i."""
        variants = tuple(k for k, start in enumerate(self.start) if start <= i)
        leans = [k for k in variants if masked[k] or i < self.injected[k]]
        sources = tuple(sorted({self.wanted[k].source for k in leans}))
        at = {g: row for row, g in enumerate(sources)}
        own = range(len(sources), len(sources) + len(variants))
        source_row = (*at.values(), *(at.get(self.wanted[k].source, row) for k, row in zip(variants, own, strict=True)))
        inject = (*[False] * len(sources), *(i < self.injected[k] for k in variants))
        return _Rows(sources, variants, source_row, inject)


def _draws(scheduler: Any) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters


def _step(scheduler: Any, eps: Tensor, t: Tensor, z_t: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    extra = {"generator": list(generators)} if _draws(scheduler) else {}
    return scheduler.step(eps, t, z_t, **extra, return_dict=False)[0]


def _generator(state: Tensor) -> torch.Generator:
    one = torch.Generator()
    one.set_state(state)
    return one


def _leaning(text: TextCondition, source: TextCondition, of: Tensor, M: Tensor) -> TextCondition:
    """SDXL's pooled text joins the time embedding, where no mask reaches: it leans to the source as far as M does (ours)."""
    if text.pooled is None or source.pooled is None:
        return text
    share = M.mean((1, 2, 3))[:, None].to(text.pooled.dtype)  # [K, 1]
    return TextCondition(text.hidden, torch.lerp(source.pooled[of], text.pooled, share))


def some(text: TextCondition, rows: Sequence[int]) -> TextCondition:
    """The conditions of some rows, in that order."""
    pooled = None if text.pooled is None else text.pooled[list(rows)]
    return TextCondition(text.hidden[list(rows)], pooled)
