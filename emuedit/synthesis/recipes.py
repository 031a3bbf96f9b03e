"""Recipes of pairs, per task, in `params.yaml`. Annotated tasks need none.

Fractions are of the scheduler's steps, counted from the first step, which is the noisiest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from emuedit import config
from emuedit.data.records import Instruction
from emuedit.synthesis.masks import MaskParams
from emuedit.synthesis.methods.local_blend import LocalBlend
from emuedit.tasks import get_task

DEFAULT = "default"


class SoftMaskRecipe(config.Params):
    """Soft-mask attention control: the second caption applies inside the mask."""

    method: Literal["soft_mask"] = "soft_mask"
    """Always `soft_mask`."""
    mask: MaskParams | None
    """Region of the second caption, and of the masked scores; null: everywhere."""
    guidance_scale: float = Field(3.0, ge=1)
    """Classifier-free guidance of the second caption."""
    source_fraction: float = Field(0.0, ge=0, le=1)
    """First fraction of the steps, with the source's latents: preserves the layout."""
    self_fraction: float = Field(0.0, ge=0, le=1)
    """First fraction of the steps, with the source's queries and keys in self-attention: preserves shapes."""
    blend_from: float = Field(0.0, ge=0, le=1)
    """Fraction of the steps from which latents outside the mask are replaced by the source's after each step."""
    blend_to: float = Field(1.0, ge=0, le=1)
    """Fraction of the steps at which that ends."""

    @model_validator(mode="after")
    def _check_order(self) -> SoftMaskRecipe:
        if self.blend_from > self.blend_to:
            raise ValueError(f"blend_from must not exceed blend_to, got {self.blend_from} and {self.blend_to}")
        return self


class PromptToPromptRecipe(config.Params):
    """Prompt-to-Prompt (Hertz et al., arXiv 2208.01626): attention maps transfer what both captions share.

    The mask does not constrain the edit; it is only used by the scores.
    """

    method: Literal["prompt_to_prompt"]
    """Always `prompt_to_prompt`."""
    mask: MaskParams | None
    """Region of the masked scores; null: everywhere."""
    guidance_scale: float = Field(3.0, ge=1)
    """Classifier-free guidance of the second caption."""
    cross_fraction: float = Field(0.8, ge=0, le=1)
    """First fraction of the steps, with the source's cross-attention maps for shared words; authors: 0.8."""
    self_fraction: float = Field(0.4, ge=0, le=1)
    """First fraction of the steps, with the source's self-attention; authors: 0.4."""
    self_tokens: int = Field(ge=0)
    """Self-attention is copied in layers of at most this many tokens; authors: 256, for SD1.5 at 512 px. SDXL at 1024 px: 1024,
    its smallest layers. An error if above 0 and below the smallest layers; 0: in no layer."""
    null_too: bool = False
    """Whether it is also copied in the rows without text, as in InstructPix2Pix."""
    blend: LocalBlend | None = None
    """LocalBlend; null: off."""


def _method(recipe: Any) -> str:
    return str(recipe.get("method", "soft_mask") if isinstance(recipe, Mapping) else recipe.method)


Recipe = Annotated[
    Annotated[SoftMaskRecipe, Tag("soft_mask")] | Annotated[PromptToPromptRecipe, Tag("prompt_to_prompt")],
    Discriminator(_method),
]


def _check_tasks(recipes: dict[str, tuple[Recipe, ...]]) -> dict[str, tuple[Recipe, ...]]:
    for name, candidates in recipes.items():
        if name != DEFAULT and get_task(name).annotated:
            raise ValueError(f"want no recipe for {name!r}: an annotator produces its targets")
        if not candidates:
            raise ValueError(f"want at least one recipe for {name!r}, got none; remove it to use {DEFAULT!r}")
    if DEFAULT not in recipes:
        raise ValueError(f"want recipes under {DEFAULT!r} for tasks without their own, got {sorted(recipes)}")
    return recipes


Recipes = Annotated[dict[str, tuple[Recipe, ...]], AfterValidator(_check_tasks)]
"""Task -> recipes, one candidate each. Generated tasks without an entry use `default`."""


def recipes_for(recipes: Recipes, task: str) -> tuple[Recipe, ...]:
    """The recipes of a task; none for an annotated task."""
    return () if get_task(task).annotated else recipes.get(task, recipes[DEFAULT])


def edits_complement(recipes: tuple[Recipe, ...]) -> bool:
    """Whether all recipes edit everything except the objects."""
    return bool(recipes) and all(recipe.mask is not None and recipe.mask.complement for recipe in recipes)


def describe_annotation(instruction: Instruction) -> dict[str, Any]:
    """What a pair with an annotated target records in place of a recipe."""
    image = {"image": instruction.image, "image_hash": instruction.image_hash} if instruction.image_hash else {}
    return {"kind": "annotate", "candidate": 0, **image}


def describe_recipe(recipe: Recipe, number: int, **facts: Any) -> dict[str, Any]:
    """The recipe as recorded in a pair."""
    return {"kind": recipe.method, "candidate": number, **recipe.model_dump(mode="json", exclude={"method"}), **facts}
