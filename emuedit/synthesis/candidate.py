"""Data structures of the synthesis: params that determine a pair, regions, jobs and candidates.

The source is the image that is generated first, or an image of the user's; for reversed instructions it is the pair's target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor

from emuedit import config
from emuedit.data.records import Instruction
from emuedit.synthesis.masks import DetectionLimits
from emuedit.synthesis.methods.prompt_to_prompt import PromptToPromptEdit
from emuedit.synthesis.recipes import PromptToPromptRecipe, Recipe, Recipes, SoftMaskRecipe, recipes_for
from emuedit.synthesis.strategy import AllCandidates, Strategy
from emuedit.synthesis.variant_plan import Variant
from emuedit.tasks import get_task


class SynthesisParams(config.Params):
    """Params that determine a pair."""

    world: config.World
    """The world with the models that generate, locate, score and annotate."""
    steps: int = Field(ge=1)
    """Scheduler steps, for sources and candidates."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance of the sources."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Fractions of the steps between which guidance is applied, to sources and candidates; other steps cost half."""
    recipes: Recipes
    """Recipes of the candidates, per generated task."""
    strategy: Strategy = AllCandidates()
    """Selection of a task's recipes for an instruction."""
    rows_per_batch: int = Field(48, ge=2)
    """Images per forward pass of a network, including sources."""
    detector_threshold: float = Field(0.2, ge=0, lt=1)
    """Score above which an object counts as detected."""
    nms_iou: float = Field(0.5, gt=0, le=1)
    """IoU with a better box above which a box is dropped."""
    all_instances: tuple[str, ...] = ()
    """Tasks whose mask has all detections of a phrase, such as both dogs of "the dogs"; others take the best detection."""
    min_area: float = Field(0.005, ge=0, le=1)
    """Smallest mask of an object, as a fraction of the image."""
    max_area: float = Field(0.5, ge=0, le=1)
    """Largest mask of an object, as a fraction of the image; larger ones are probably errors of the segmenter. Where everything
    else is edited (the background), the objects may be larger, and the rest must have at least `min_area`."""

    @field_validator("all_instances")
    @classmethod
    def _check_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(get_task(task).name for task in tasks)

    @field_validator("guidance_interval")
    @classmethod
    def _check_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"want two shares of the steps in [0, 1], the first not above the second, got {list(interval)}")
        return interval

    @property
    def detection_limits(self) -> DetectionLimits:
        """Limits for accepted detections and masks."""
        return DetectionLimits(self.detector_threshold, self.nms_iou, self.min_area, self.max_area)

    def estimate_rows(self, instructions: Sequence[Instruction]) -> float:
        """Estimated number of U-Net rows for these instructions, for progress; scoring counts as a fifth more.

        Prompt-to-Prompt samples its sources again.
        """
        recipes = {task: recipes_for(self.recipes, task) for task in {instruction.task for instruction in instructions}}
        n_jobs = sum(len(recipes[instruction.task]) for instruction in instructions)
        generated = [instruction for instruction in instructions if not instruction.image_hash]
        has_edits = {task for task in recipes if any(isinstance(recipe, PromptToPromptRecipe) for recipe in recipes[task])}
        n_sampled = len({source_caption(instruction) for instruction in generated})
        n_sampled_again = len({source_caption(instruction) for instruction in generated if instruction.task in has_edits})
        return 1.2 * 2 * self.steps * (n_sampled + n_sampled_again + n_jobs)

    def estimate_cost(self, instructions: Sequence[Instruction]) -> float:
        """Estimated time for these instructions, in U-Net rows. Finding objects, annotating and scoring count as four. Ours.

        Pairs of the user's images need only these.
        """
        return self.estimate_rows(instructions) + 4 * len(instructions)


def source_caption(instruction: Instruction) -> str:
    """The caption of the image that is generated first."""
    return instruction.target_caption if instruction.reverse else instruction.source_caption


def source_key(instruction: Instruction) -> tuple[str, str]:
    """What determines the first image: (caption, '') if it is generated, ('', hash of the file) for an image of the user's."""
    return ("", instruction.image_hash) if instruction.image_hash else (source_caption(instruction), "")


def variant_caption(instruction: Instruction) -> str:
    """The caption of the image that is generated from the source."""
    return instruction.source_caption if instruction.reverse else instruction.target_caption


@dataclass(frozen=True)
class Region:
    """The region of an instruction."""

    source: int  # row of the source
    P: Tensor  # bool [H, W], the union of the named objects
    box_px: Tensor  # [4] of the first object, zeros without one
    difference_masks: dict[int, Tensor] = field(default_factory=dict)  # recipe number -> P of that recipe

    @property
    def area(self) -> float:
        """Fraction of the image covered by the objects."""
        return int(self.P.sum()) / self.P.numel()


@dataclass(frozen=True)
class Job:
    """A candidate to generate with the base model."""

    instruction: Instruction
    recipe: Recipe
    description: dict[str, Any]  # the recipe as the pair records it
    source: int  # row of the source
    M: Tensor  # [1, H, W]

    def variant(self, recipe: SoftMaskRecipe) -> Variant:
        """The job as a variant for the sampler."""
        return Variant(
            source=self.source,
            caption=variant_caption(self.instruction),
            M=self.M,
            source_fraction=recipe.source_fraction,
            self_fraction=recipe.self_fraction,
            blend_from=recipe.blend_from,
            blend_to=recipe.blend_to,
            guidance_scale=recipe.guidance_scale,
        )

    def prompt_to_prompt_edit(self, recipe: PromptToPromptRecipe) -> PromptToPromptEdit:
        """The job as an edit for Prompt-to-Prompt."""
        return PromptToPromptEdit(
            source=self.source,
            caption=variant_caption(self.instruction),
            cross_fraction=recipe.cross_fraction,
            self_fraction=recipe.self_fraction,
            self_tokens=recipe.self_tokens,
            guidance_scale=recipe.guidance_scale,
            null_too=recipe.null_too,
            blend=recipe.blend,
        )


@dataclass(frozen=True)
class Candidate:
    """A generated or annotated image with its source, not yet scored."""

    instruction: Instruction
    source: int  # row of the source
    picture: Tensor  # float32 [3, H, W] in [-1, 1]
    M: Tensor | None  # [1, H, W]; None for the whole image and for annotated targets
    description: dict[str, Any]  # the recipe as the pair records it
