"""Sample source images once, and edited variants that share the source's noise, latents and attention.

Shapes: G sources, K variants, R rows of a forward pass, S steps, C latent channels, h and w the size of the latents, H and W of
the images. z[i] are the latents before step i; z[S] is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emuedit.core import guidance, soft_mask
from emuedit.models.attention_processor import install_processor
from emuedit.models.denoising import Denoiser, memoryless_scheduler
from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.synthesis.attention_control import MaskControl
from emuedit.synthesis.attention_features import AttentionFeatures, FeatureRecorder
from emuedit.synthesis.variant_plan import StepRows, Variant, VariantPlan

ReportRows = Callable[[int], None]
"""Called after each forward pass of the U-Net with its number of rows."""


@dataclass(frozen=True)
class Trajectory:
    """Latents of G sources in all steps from noise to image."""

    z: Tensor  # float32 [S + 1, G, C, h, w]
    text: TextCondition  # G
    guidance_scale: float
    generator_states: tuple[tuple[Tensor, ...], ...]  # [S][G] before each step; empty for a scheduler that draws nothing
    e_null: tuple[Tensor | None, ...] = ()
    """[S] if `features` are recorded: predictions for the null text [G, C, h, w], None in a step without guidance."""
    features: tuple[AttentionFeatures, ...] = ()
    """[S] attention of the sources; empty if it was not recorded."""

    def __len__(self) -> int:
        return self.z.shape[1]

    def generators(self, step: int, sources: Sequence[int]) -> list[torch.Generator]:
        """New generators in the states that those of these sources had before a step."""
        generators = [torch.Generator() for _ in sources]
        for generator, source in zip(generators, sources, strict=True):
            generator.set_state(self.generator_states[step][source])
        return generators

    @staticmethod
    def cat(*parts: Trajectory) -> Trajectory:
        """Concatenate the sources of several batches sampled with equal settings. A single part is not copied."""
        if len(parts) == 1:
            return parts[0]
        states = tuple(sum(step, ()) for step in zip(*(part.generator_states for part in parts), strict=True))
        text = TextCondition.cat(*(part.text for part in parts))
        e_null: tuple[Tensor | None, ...] = ()
        features: tuple[AttentionFeatures, ...] = ()
        if all(part.features for part in parts):
            features = tuple(AttentionFeatures.cat(*step) for step in zip(*(part.features for part in parts), strict=True))
            e_null = tuple(
                None if step[0] is None else torch.cat(step) for step in zip(*(part.e_null for part in parts), strict=True)
            )
        z = torch.cat([part.z for part in parts], dim=1)
        return Trajectory(z, text, parts[0].guidance_scale, states, e_null, features)


@dataclass(frozen=True)
class _ActiveVariants:
    """The V variants that are computed in a step."""

    rows: StepRows
    z: Tensor  # float32 [V, C, h, w] before the step
    text: TextCondition  # V
    M: Tensor  # float32 [V, 1, H, W]
    scale: Tensor  # [V] guidance scales
    source_of: Tensor  # int64 [V], among the G sources of the trajectory
    inject: Tensor  # bool [V]
    n_terms: int  # of guidance

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.z.shape[-2], self.z.shape[-1]


@dataclass(frozen=True)
class Sampler:
    """Samples sources and variants with a base model. `dtype` other than float32 runs the U-Net under autocast."""

    base_model: TextToImageModel
    steps: int
    dtype: torch.dtype = torch.float32
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Fractions of the steps between which guidance is applied (Kynkäänniemi et al., arXiv 2404.07724, who use noise levels);
    other steps use only the conditional prediction, at half the cost."""
    report: ReportRows | None = None

    def denoiser(self, generators: Sequence[torch.Generator] = ()) -> Denoiser:
        """A new scheduler: the base model's, or DDIM with its noise levels if that is a multistep scheduler."""
        return Denoiser(memoryless_scheduler(self.base_model.scheduler), self.steps, self.base_model.device, generators)

    def sources(
        self, captions: Sequence[str], seeds: Sequence[int], guidance_scale: float, max_feature_bytes: int = 0
    ) -> Trajectory:
        """Generate G captions like `TextToImageModel.generate`, and keep the trajectory. One CPU generator per source.

        Their attention is kept too if it needs at most `max_feature_bytes`, which makes `variants` cheaper.
        """
        if len(captions) != len(seeds) or not captions:
            raise ValueError(f"want one seed per caption and at least one, got {len(captions)} captions and {len(seeds)} seeds")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        denoiser = self.denoiser(generators)
        text, null = self.base_model.encode_text(captions), self.base_model.null_text(1)
        z_t = denoiser.start(self.base_model.initial_noise(generators))  # [G, C, h, w]
        scale = z_t.new_full((len(z_t),), guidance_scale)
        z, states, nulls, features = [z_t], [], [], []
        recorder = FeatureRecorder(max_feature_bytes / self.steps) if max_feature_bytes > 0 else None
        with nullcontext() if recorder is None else install_processor(self.base_model.unet, recorder):
            for step, t in enumerate(denoiser.timesteps):
                e, e_null = self.predict_guided(denoiser, step, z_t, text, null, scale)
                if recorder is not None and recorder.is_recording:
                    nulls.append(e_null)
                    features.append(recorder.take(len(z_t)))
                states.append(tuple(generator.get_state() for generator in generators) if denoiser.draws_noise else ())
                z_t = denoiser.step(e, t, z_t)
                z.append(z_t)
        if len(features) < len(denoiser.timesteps):  # a forward pass exceeded max_feature_bytes
            nulls, features = [], []
        return Trajectory(torch.stack(z), text, guidance_scale, tuple(states), tuple(nulls), tuple(features))

    def variants(self, trajectory: Trajectory, variants: Sequence[Variant]) -> Tensor:
        """Sample K variants in one batch, with the sources they need: latents float32 [K, C, h, w].

        Only needed rows are computed. Not needed are: a source with recorded attention, or not used in this step (M = 1
        everywhere and nothing injected); a variant that still equals its source; and, in a variant's first step, its null text,
        since the source's prediction is known.
        """
        plan = VariantPlan(self.steps, variants)
        if len(trajectory.z) != self.steps + 1:
            raise ValueError(
                f"want a trajectory of {self.steps} steps, got one of {len(trajectory.z) - 1}; sample it with this sampler"
            )
        denoiser, device = self.denoiser(), trajectory.z.device
        M = torch.stack([variant.M for variant in variants]).to(device, torch.float32)  # [K, 1, H, W]
        M_z = soft_mask.resize(M, trajectory.z.shape[-2], trajectory.z.shape[-1])  # [K, 1, h, w]
        source_of = torch.tensor([variant.source for variant in variants], device=device)
        text = self.base_model.encode_text([variant.caption for variant in variants])
        text = _blend_pooled_text(text, trajectory.text, source_of, M)
        scale = torch.tensor([variant.guidance_scale for variant in variants], device=device)
        null = self.base_model.null_text(1)
        z = trajectory.z[plan.start, source_of]  # [K, C, h, w]
        with install_processor(self.base_model.unet, MaskControl()) as control:
            for step, t in enumerate(denoiser.timesteps):
                rows = plan.rows(step)
                if not rows.variants:
                    continue
                k = list(rows.variants)
                inject = torch.tensor(rows.inject, device=device)
                n_terms = self.n_terms(denoiser, step, scale[k])
                active = _ActiveVariants(rows, z[k], text.take(k), M[k], scale[k], source_of[k], inject, n_terms)
                if trajectory.features and trajectory.features[step].n_terms >= n_terms:
                    e = self._predict_from_features(control, denoiser, step, trajectory, active, null)
                else:
                    e = self._predict_with_sources(control, denoiser, step, trajectory, active, null)
                sources = [variants[row].source for row in k]
                generators = trajectory.generators(step, sources) if denoiser.draws_noise else []
                z[k] = denoiser.step(e, t, z[k], generators)
                blended = [row for row in k if plan.blends(row, step)]
                z[blended] = torch.lerp(trajectory.z[step + 1, source_of[blended]], z[blended], M_z[blended])
        return z

    def predict(self, denoiser: Denoiser, z_t: Tensor, t: Tensor, text: TextCondition) -> Tensor:
        """One forward pass of the U-Net without guidance: its prediction, of any type, float32 [R, C, h, w]."""
        with torch.no_grad(), torch.autocast(z_t.device.type, self.dtype, enabled=self.dtype != torch.float32):
            e = self.base_model.predict(denoiser.scale(z_t, t), t, text)
        if self.report is not None:
            self.report(len(z_t))
        return e

    def n_terms(self, denoiser: Denoiser, step: int, scale: Tensor) -> int:
        """Terms of classifier-free guidance in a step: 2, null text and text, for a scale [R] other than 1; else 1, the text."""
        guided_steps = guidance.guided_steps(self.guidance_interval, len(denoiser.timesteps))
        return 2 if step in guided_steps and bool((scale != 1).any()) else 1

    def predict_guided(
        self,
        denoiser: Denoiser,
        step: int,
        z_t: Tensor,
        text: TextCondition,
        null: TextCondition,
        scale: Tensor,
        e_null: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Classifier-free guidance with one scale per row [R]; both terms in one forward pass.

        `e_null` [R, C, h, w]: prediction for the null text, if known. It is returned together with the guided prediction; None in
        a step without guidance.
        """
        t = denoiser.timesteps[step]
        if self.n_terms(denoiser, step, scale) == 1:
            return self.predict(denoiser, z_t, t, text), None
        if e_null is None:
            both = TextCondition.cat(null.repeat(len(text)), text)
            e_null, e_text = self.predict(denoiser, torch.cat([z_t, z_t]), t, both).chunk(2)
        else:
            e_text = self.predict(denoiser, z_t, t, text)
        return guidance.classifier_free(e_null, e_text, scale.view(-1, 1, 1, 1)), e_null

    def _predict_from_features(
        self,
        control: MaskControl,
        denoiser: Denoiser,
        step: int,
        trajectory: Trajectory,
        active: _ActiveVariants,
        null: TextCondition,
    ) -> Tensor:
        """Predictions [V, C, h, w] with the recorded attention of the sources, which are not computed again.

        If it is the first step of all variants, their predictions for the null text are those of the sources, which are recorded,
        too.
        """
        e_null_sources = trajectory.e_null[step] if active.rows.all_start else None
        e_null = None if e_null_sources is None else e_null_sources[active.source_of]
        n_terms = active.n_terms if e_null is None else 1
        control.set_recorded(trajectory.features[step], active.source_of, active.M, active.inject, active.size, n_terms)
        return self.predict_guided(denoiser, step, active.z, active.text, null, active.scale, e_null)[0]

    def _predict_with_sources(
        self,
        control: MaskControl,
        denoiser: Denoiser,
        step: int,
        trajectory: Trajectory,
        active: _ActiveVariants,
        null: TextCondition,
    ) -> Tensor:
        """Predictions [V, C, h, w]; the needed sources are computed in the same forward pass, before the variants."""
        sources, M, inject = list(active.rows.sources), active.M, active.inject
        n_sources = len(sources)
        scale = torch.cat([active.scale.new_full((n_sources,), trajectory.guidance_scale), active.scale])  # [R]
        n_terms = self.n_terms(denoiser, step, scale)
        source_row = torch.tensor((*range(n_sources), *active.rows.source_row), device=M.device)  # [R]
        control.set(
            torch.cat([source_row + term * len(source_row) for term in range(n_terms)]),
            torch.cat([M.new_ones(n_sources, *M.shape[1:]), M]).repeat(n_terms, 1, 1, 1),
            torch.cat([inject.new_zeros(n_sources), inject]).repeat(n_terms),
            active.size,
        )
        text = TextCondition.cat(trajectory.text.take(sources), active.text)
        z = torch.cat([trajectory.z[step, sources], active.z])
        return self.predict_guided(denoiser, step, z, text, null, scale)[0][n_sources:]


def _blend_pooled_text(text: TextCondition, source: TextCondition, source_of: Tensor, M: Tensor) -> TextCondition:
    """Interpolate SDXL's pooled text between source and variant by the mean of M.

    Pooled text is added to the time embedding, which has no mask, so at M = 0 it must be the source's. Ours.
    """
    if text.pooled is None or source.pooled is None:
        return text
    share: Any = M.mean((1, 2, 3))[:, None].to(text.pooled.dtype)  # [K, 1]
    return TextCondition(text.hidden, torch.lerp(source.pooled[source_of], text.pooled, share))
