"""Plan which rows of a batch of variants are computed in each step.

Shapes: K variants, S steps, R rows of a forward pass: the needed sources, then the variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Variant:
    """An edited version of a source: another caption, and how much of the source is kept. Fractions are of the S steps."""

    source: int
    caption: str
    M: Tensor  # float [1, H, W] in [0, 1]: 1: the variant's caption applies, 0: the source is kept
    source_fraction: float  # first steps, with the source's latents
    self_fraction: float  # first steps, with the source's queries and keys in self-attention
    blend_from: float  # between these two, after each step: z <- M z + (1 - M) z_source
    blend_to: float
    guidance_scale: float


@dataclass(frozen=True)
class StepRows:
    """The rows of one step: G needed sources, then V variants."""

    sources: tuple[int, ...]  # [G]
    variants: tuple[int, ...]  # [V]
    source_row: tuple[int, ...]
    """[V] row of each variant's source in the batch; a variant that needs no source in this step points at itself."""
    inject: tuple[bool, ...]  # [V] whether queries and keys are taken from the source
    all_start: bool  # whether it is the first step of all variants, which still equal their sources


class VariantPlan:
    """Fractions converted to steps. Raises ValueError without variants and for fractions that are out of range or order."""

    def __init__(self, steps: int, variants: Sequence[Variant]) -> None:
        if not variants:
            raise ValueError("want at least one variant, got none")
        for variant in variants:
            fractions = (variant.source_fraction, variant.self_fraction, variant.blend_from, variant.blend_to)
            if not all(0 <= fraction <= 1 for fraction in fractions) or variant.blend_from > variant.blend_to:
                raise ValueError(f"fractions of the steps must be in [0, 1], blend_from before blend_to; got {fractions}")
        self._source = [variant.source for variant in variants]
        self._masked = [bool((variant.M < 1).any()) for variant in variants]
        self.start = [round(variant.source_fraction * steps) for variant in variants]
        self._inject_until = [round(variant.self_fraction * steps) for variant in variants]
        self._blend = [(round(variant.blend_from * steps), round(variant.blend_to * steps)) for variant in variants]

    def blends(self, k: int, step: int) -> bool:
        """Whether variant k is blended with its source after this step."""
        first, last = self._blend[k]
        return first <= step < last

    def rows(self, step: int) -> StepRows:
        """The rows to compute in this step."""
        variants = tuple(k for k, start in enumerate(self.start) if start <= step)
        dependent = [k for k in variants if self._masked[k] or step < self._inject_until[k]]
        sources = tuple(sorted({self._source[k] for k in dependent}))
        row_of = {source: row for row, source in enumerate(sources)}
        rows = enumerate(variants, start=len(sources))
        source_row = tuple(row_of.get(self._source[k], row) for row, k in rows)
        inject = tuple(step < self._inject_until[k] for k in variants)
        return StepRows(sources, variants, source_row, inject, all_start=all(self.start[k] == step for k in variants))
