"""Methods that generate pairs from the same instructions: soft masks, InstructPix2Pix's recipe, Prompt-to-Prompt."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from emuedit.data.records import Instruction
from emuedit.runtime import rng, seed_for
from emuedit.stages.pairs import PairsParams
from emuedit.synthesis import batching
from emuedit.synthesis.candidate import source_caption, variant_caption
from emuedit.synthesis.methods import prompt_to_prompt
from emuedit.synthesis.methods.local_blend import LocalBlend
from emuedit.synthesis.methods.prompt_to_prompt import PromptToPromptEdit
from emuedit.synthesis.recipes import SoftMaskRecipe, recipes_for
from emuedit.synthesis.strategy import AllCandidates, BanditStrategy, Strategy, TrialCounts, choose_candidates
from emuedit.synthesis.variant_plan import Variant
from harness.pair_setup import GeneratedPair, Setup, Stopwatch, object_phrases

GUIDANCE_RANGE, SELF_FRACTION_RANGE = (7.5, 15.0), (0.1, 0.9)
"""Both are sampled uniformly, as in InstructPix2Pix."""
CROSS_FRACTION, SELF_FRACTION, GUIDANCE_SCALE = 0.8, 0.4, 7.5
"""The usual values of Prompt-to-Prompt."""
BLEND_THRESHOLD, BLEND_START = 0.3, 0.2
"""The usual values of LocalBlend."""
LAYER_SHARE = 0.25
"""Tokens of the layers that Prompt-to-Prompt uses, as a share of the latents' cells. The authors use 16 x 16 of 64 x 64,
which is a sixteenth. This choice, for smaller latents, is ours."""
GRID_RADIUS_PX, GRID_SELF_FRACTION = (1.0, 3.0, 6.0), (0.0, 0.4)
"""A grid of recipes per task, as one would try without prior knowledge."""
OBJECT_SIZES = (0.04, 0.1)
"""Bounds between small, medium and large objects, as shares of the image."""


@dataclass(frozen=True)
class _Job:
    """A candidate to generate with soft-mask control."""

    instruction: Instruction
    candidate: int
    object_area: float
    variant: Variant

    def pair(self, source: Tensor, variant: Tensor) -> GeneratedPair:
        """The candidate with its images: the source and the generated variant."""
        before, after = (variant, source) if self.instruction.reverse else (source, variant)
        return GeneratedPair(self.instruction, self.candidate, before, after, self.object_area)


@dataclass(frozen=True)
class SoftMaskMethod:
    """Soft-mask control as in the stage `pairs`. `mask`: soft, hard (only the precise mask) or none."""

    mask: str = "soft"
    share_sources: bool = True  # instructions with the same source caption share the source
    use_grid: bool = False  # use a grid of recipes instead of those of params.yaml
    strategy: Strategy = AllCandidates(kind="all")  # noqa: RUF009  frozen
    trial_counts: TrialCounts = field(default_factory=Counter)

    def count_trials(self, outcomes: Iterable[tuple[GeneratedPair, bool]]) -> None:
        """Count candidates that passed the filters, for the bandit's choices in the next blocks."""
        if self.strategy.kind == "bandit":
            arm = self.strategy.arm
            self.trial_counts.update(
                (arm(pair.instruction.task, pair.object_area, pair.candidate), success) for pair, success in outcomes
            )

    def generate(self, name: str, instructions: Sequence[Instruction], setup: Setup, stopwatch: Stopwatch) -> list[GeneratedPair]:
        """All candidates of the recipes or of the grid, or those chosen by the bandit."""
        keys = [self._source_key(instruction) for instruction in instructions]
        row_of = {key: row for row, key in enumerate(sorted(set(keys)))}
        captions = [key.partition("\n")[0] for key in row_of]
        seeds = [seed_for("pairs", "source", caption) for caption in captions]
        max_rows = setup.params.rows_per_batch
        with stopwatch.measure(name, 0, "sources"):
            scale = setup.params.guidance_scale
            trajectory, sources = batching.generate_sources(setup.sampler, captions, seeds, scale, max_rows)
        source_rows = [row_of[key] for key in keys]
        with stopwatch.measure(name, 0, "masks"):
            precise: list[Tensor | None] = [torch.ones(1)] * len(instructions)
            if self.mask != "none":
                phrases = [object_phrases(instruction) for instruction in instructions]
                precise = setup.locate(sources, list(zip(source_rows, phrases, strict=True)))
        jobs = []
        for instruction, row, P in zip(instructions, source_rows, precise, strict=True):
            if P is not None:
                jobs += self._jobs(instruction, row, P, sources.shape[-2:], setup.params)
        jobs.sort(key=lambda job: job.variant.source)
        with stopwatch.measure(name, 0, "edits"):
            variants = [job.variant for job in jobs]
            batches = list(batching.generate_variants(setup.sampler, trajectory, variants, max_rows))
        pictures = [picture for batch in batches for picture in batch]
        shared = list(sources)  # each is one Python object, so that it is embedded once
        return [job.pair(shared[job.variant.source], picture) for job, picture in zip(jobs, pictures, strict=True)]

    def _source_key(self, instruction: Instruction) -> str:
        caption = source_caption(instruction)
        return caption if self.share_sources else f"{caption}\n{instruction.id}"

    def _jobs(self, instruction: Instruction, row: int, P: Tensor, size: Sequence[int], params: PairsParams) -> list[_Job]:
        """The candidates to generate for an instruction; `row`: row of its source."""
        recipes, area = self._recipes(instruction.task, params), float(P.float().mean())
        jobs = []
        for number in choose_candidates(self.strategy, instruction.task, area, len(recipes), self.trial_counts, instruction.id):
            recipe = recipes[number]
            M = self._soft_mask(recipe, P, size)
            fractions = (recipe.source_fraction, recipe.self_fraction, recipe.blend_from, recipe.blend_to)
            variant = Variant(row, variant_caption(instruction), M, *fractions, recipe.guidance_scale)
            jobs.append(_Job(instruction, number, area, variant))
        return jobs

    def _recipes(self, task: str, params: PairsParams) -> list[SoftMaskRecipe]:
        recipes = [recipe for recipe in recipes_for(params.recipes, task) if isinstance(recipe, SoftMaskRecipe)]
        if not self.use_grid:
            return recipes
        first = recipes[0]
        assert first.mask is not None
        radii_px = (first.mask.radius_px,) if first.mask.complement else GRID_RADIUS_PX
        grid_masks = [first.mask.model_copy(update={"radius_px": radius}) for radius in radii_px]
        return [
            first.model_copy(update={"mask": mask, "self_fraction": fraction})
            for mask in grid_masks
            for fraction in GRID_SELF_FRACTION
        ]

    def _soft_mask(self, recipe: SoftMaskRecipe, P: Tensor, size: Sequence[int]) -> Tensor:
        if self.mask == "none":
            return torch.ones(1, *size)
        assert recipe.mask is not None
        hard = {"w_p": 1.0, "w_s": 0.0, "w_b": 0.0, "radius_px": 0.0, "sigma_px": 0.0}
        return (recipe.mask if self.mask == "soft" else recipe.mask.model_copy(update=hard)).soft_mask(P)


@dataclass(frozen=True)
class InstructPix2PixMethod:
    """The data recipe of InstructPix2Pix: two new images per candidate, random guidance and self-attention fraction."""

    rounds: int

    def generate(self, name: str, instructions: Sequence[Instruction], setup: Setup, stopwatch: Stopwatch) -> list[GeneratedPair]:
        """`rounds` candidates of every instruction."""
        pairs, steps, per_batch = [], setup.params.steps, setup.params.rows_per_batch // 2
        for k in range(self.rounds):
            for start in range(0, len(instructions), per_batch):
                batch = instructions[start : start + per_batch]
                generators = [rng("bench", "instruct_pix2pix", instruction.id, k) for instruction in batch]
                fractions = [random.uniform(*SELF_FRACTION_RANGE) for random in generators]
                scales = [random.uniform(*GUIDANCE_RANGE) * setup.guidance_factor for random in generators]
                seeds = [seed_for("bench", "instruct_pix2pix", instruction.id, k) for instruction in batch]
                captions = [instruction.source_caption for instruction in batch]
                edits = [
                    prompt_to_prompt.instruct_pix2pix(
                        g, instruction.target_caption, math.ceil(fractions[g] * (steps - 1)) / steps, scales[g]
                    )  # the authors inject in step i while fraction > i / (steps - 1)
                    for g, instruction in enumerate(batch)
                ]
                with stopwatch.measure(name, k, "edits"):
                    latents = setup.prompt_to_prompt.generate(captions, seeds, scales, edits)
                    sources, targets = (setup.decode(z) for z in latents)
                pairs += [GeneratedPair(instruction, k, sources[g], targets[g]) for g, instruction in enumerate(batch)]
        return pairs


@dataclass(frozen=True)
class PromptToPromptMethod:
    """Prompt-to-Prompt, with or without LocalBlend. Edits of one source caption share the source."""

    blend: bool

    def generate(self, name: str, instructions: Sequence[Instruction], setup: Setup, stopwatch: Stopwatch) -> list[GeneratedPair]:
        """One candidate of every instruction."""
        base_model, scale = setup.models.base_model, GUIDANCE_SCALE * setup.guidance_factor
        height, width = (n // base_model.factor for n in base_model.size)
        n_tokens = round(height * width * LAYER_SHARE)
        blend = LocalBlend(n_tokens=n_tokens, threshold=BLEND_THRESHOLD, start=BLEND_START) if self.blend else None
        like = PromptToPromptEdit(0, "", *authors_fractions(setup.params.steps), n_tokens, scale, blend=blend)
        pairs = []
        for batch in _pack_by_caption(instructions, setup.params.rows_per_batch):
            captions = list(dict.fromkeys(instruction.source_caption for instruction in batch))
            seeds = [seed_for("pairs", "source", caption) for caption in captions]
            edits = [
                replace(like, source=captions.index(instruction.source_caption), caption=instruction.target_caption)
                for instruction in batch
            ]
            with stopwatch.measure(name, 0, "edits"):
                latents = setup.prompt_to_prompt.generate(captions, seeds, [scale] * len(captions), edits)
                sources, targets = (setup.decode(z) for z in latents)
            shared = list(sources)  # each is one Python object, so that it is embedded once
            pairs += [
                GeneratedPair(instruction, 0, shared[edit.source], target)
                for instruction, edit, target in zip(batch, edits, targets, strict=True)
            ]
        return pairs


def authors_fractions(steps: int) -> tuple[float, float]:
    """Fractions of the steps with the source's cross-attention and with its self-attention, rounded as in the authors' code.

    Cross-attention is scheduled over steps + 1 entries (`get_time_words_attention_alpha` in `ptp_utils.py`).
    """
    return int(CROSS_FRACTION * (steps + 1)) / steps, int(SELF_FRACTION * steps) / steps


def _pack_by_caption(instructions: Sequence[Instruction], max_rows: int) -> Iterator[list[Instruction]]:
    """Batches of at most `max_rows` sources plus edits; equal source captions are adjacent."""
    batch: list[Instruction] = []
    for instruction in sorted(instructions, key=lambda row: row.source_caption):
        if len(batch) + 1 + len({row.source_caption for row in [*batch, instruction]}) > max_rows:
            yield batch
            batch = []
        batch.append(instruction)
    if batch:
        yield batch


def _bandit(per_instruction: int) -> BanditStrategy:
    """A bandit; its own filters are not used, because the benchmark counts the trials."""
    return BanditStrategy(
        kind="bandit", per_instruction=per_instruction, shards_per_round=1, sizes=OBJECT_SIZES, filters={"default": {}}
    )


Method = SoftMaskMethod | InstructPix2PixMethod | PromptToPromptMethod
METHODS: dict[str, Method] = {
    "soft_mask": SoftMaskMethod(),
    "soft_mask_without_sharing": SoftMaskMethod(share_sources=False),
    "hard_mask": SoftMaskMethod(mask="hard"),
    "no_mask": SoftMaskMethod(mask="none"),
    "recipe_grid_all": SoftMaskMethod(use_grid=True),
    "recipe_grid_bandit_1": SoftMaskMethod(use_grid=True, strategy=_bandit(1)),
    "recipe_grid_bandit_2": SoftMaskMethod(use_grid=True, strategy=_bandit(2)),
    "instruct_pix2pix": InstructPix2PixMethod(rounds=4),
    "prompt_to_prompt": PromptToPromptMethod(blend=False),
    "prompt_to_prompt_local_blend": PromptToPromptMethod(blend=True),
}
