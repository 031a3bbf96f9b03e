"""What synthesis works on: the params that decide a pair, regions, jobs and candidates.

The source is the image that is generated first, which for instructions built backwards is the pair's target.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor

from emuedit import config
from emuedit.data.records import Instruction
from emuedit.synthesis.masks import DetectionLimits
from emuedit.synthesis.methods.prompt_to_prompt import LocalBlend, PromptToPromptEdit
from emuedit.synthesis.recipes import PromptToPromptRecipe, Recipe, Recipes, SoftMaskRecipe
from emuedit.synthesis.strategy import AllCandidates, Strategy
from emuedit.synthesis.variant_plan import Variant


class SynthesisParams(config.Params):
    """Params that decide a pair."""

    world: config.World
    """The world, whose models generate, locate, score and annotate."""
    steps: int = Field(ge=1)
    """Steps of the scheduler, for sources and candidates alike."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance of the sources."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Shares of the steps between which guidance is applied, to sources and candidates; outside a step costs half."""
    recipes: Recipes
    """How the candidates of each generated task are made."""
    strategy: Strategy = AllCandidates()
    """Which of a task's recipes are used for an instruction."""
    rows_per_batch: int = Field(48, ge=2)
    """Pictures that go through a network together, sources included."""
    detector_threshold: float = Field(0.2, ge=0, lt=1)
    """Score above which an object counts as detected."""
    nms_iou: float = Field(0.5, gt=0, le=1)
    """Boxes that overlap a better one by more are dropped."""
    all_instances: tuple[str, ...] = ()
    """Tasks whose mask has all detections of a phrase, such as both dogs of "the dogs"; others take the best detection."""
    min_area: float = Field(0.005, ge=0, le=1)
    """Smallest mask of an object, as a share of the image."""
    max_area: float = Field(0.5, ge=0, le=1)
    """Largest mask of an object; a larger one is taken for a mistake of the segmenter."""

    @field_validator("guidance_interval")
    @classmethod
    def _check_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"want two shares of the steps in [0, 1], the first not above the second, got {list(interval)}")
        return interval

    @property
    def detection_limits(self) -> DetectionLimits:
        """Which detections and masks are accepted."""
        return DetectionLimits(self.detector_threshold, self.nms_iou, self.min_area, self.max_area)


def source_caption(instruction: Instruction) -> str:
    """The caption that is generated first."""
    return instruction.target_caption if instruction.reverse else instruction.source_caption


def variant_caption(instruction: Instruction) -> str:
    """The caption of the image that is made from the source."""
    return instruction.source_caption if instruction.reverse else instruction.target_caption


@dataclass(frozen=True)
class Region:
    """Where an instruction applies."""

    source: int  # row of the source
    P: Tensor  # bool [H, W], the union of the named objects
    box_px: Tensor  # [4] of the first object, zeros without one
    difference_masks: dict[int, Tensor] = field(default_factory=dict)  # number of a recipe -> its own P

    @property
    def area(self) -> float:
        """Share of the image that the objects cover."""
        return int(self.P.sum()) / self.P.numel()


@dataclass(frozen=True)
class Job:
    """One candidate that the base model is to generate."""

    instruction: Instruction
    recipe: Recipe
    description: dict[str, Any]  # the recipe as the pair records it
    source: int  # row of the source
    M: Tensor  # [1, H, W]

    def variant(self, recipe: SoftMaskRecipe) -> Variant:
        """The job for the sampler."""
        fractions = (recipe.source_fraction, recipe.self_fraction, recipe.blend_from, recipe.blend_to)
        return Variant(self.source, variant_caption(self.instruction), self.M, *fractions, recipe.guidance_scale)

    def prompt_to_prompt_edit(self, recipe: PromptToPromptRecipe) -> PromptToPromptEdit:
        """The job for Prompt-to-Prompt."""
        blend = None
        if recipe.blend is not None:
            blend = LocalBlend(recipe.blend.n_tokens, recipe.blend.threshold, recipe.blend.start)
        fractions = (recipe.cross_fraction, recipe.self_fraction, recipe.self_tokens)
        caption = variant_caption(self.instruction)
        return PromptToPromptEdit(self.source, caption, *fractions, recipe.guidance_scale, recipe.null_too, blend=blend)


@dataclass(frozen=True)
class Candidate:
    """A generated or annotated image beside its source, not yet scored."""

    instruction: Instruction
    source: int  # row of the source
    picture: Tensor  # float32 [3, H, W] in [-1, 1]
    M: Tensor | None  # [1, H, W]; None for the whole image and for annotated targets
    description: dict[str, Any]  # the recipe as the pair records it
