"""How each task makes its pairs: recipes per task in `params.yaml`. The targets of annotated tasks need none.

All fractions are of the scheduler's steps, counted from the first step, the noisiest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from emuedit import config
from emuedit.synthesis.masks import MaskParams
from emuedit.tasks import get_task

DEFAULT = "default"


class SoftMaskRecipe(config.Params):
    """Soft-mask attention control: the mask decides where the second caption rules."""

    method: Literal["soft_mask"] = "soft_mask"
    """The word `soft_mask`."""
    mask: MaskParams | None
    """Where the second caption rules, and where the scores look; null: everywhere."""
    guidance_scale: float = Field(3.0, ge=1)
    """Classifier-free guidance of the second caption."""
    source_fraction: float = Field(0.0, ge=0, le=1)
    """First part of the steps, in which the latents are the source's: it keeps the layout."""
    self_fraction: float = Field(0.0, ge=0, le=1)
    """First part of the steps, in which self-attention takes the source's queries and keys: it keeps shapes."""
    blend_from: float = Field(0.0, ge=0, le=1)
    """From here on the source's latents replace the rest of the mask after each step."""
    blend_to: float = Field(1.0, ge=0, le=1)
    """Until here."""

    @model_validator(mode="after")
    def _check_order(self) -> SoftMaskRecipe:
        if self.blend_from > self.blend_to:
            raise ValueError(f"blend_from must not exceed blend_to, got {self.blend_from} and {self.blend_to}")
        return self


class WordBlend(config.Params):
    """LocalBlend of Prompt-to-Prompt: where the changed words of neither caption attend, the source's latents stay."""

    n_tokens: int = Field(ge=1)
    """Layers with this many tokens are read; the authors' 256 at latents of 64 x 64."""
    threshold: float = Field(0.3, ge=0, lt=1)
    """Of a map divided by its largest value; the authors' 0.3."""
    start: float = Field(0.2, ge=0, le=1)
    """Part of the steps before which nothing is blended; the authors' 0.2."""


class PromptToPromptRecipe(config.Params):
    """Prompt-to-Prompt (Hertz et al., arXiv 2208.01626): attention maps carry over what both captions share.

    The mask constrains nothing; it only tells the scores where to look.
    """

    method: Literal["prompt_to_prompt"]
    """The word `prompt_to_prompt`."""
    mask: MaskParams | None
    """Where the scores look; null: everywhere."""
    guidance_scale: float = Field(3.0, ge=1)
    """Classifier-free guidance of the second caption."""
    cross_fraction: float = Field(0.8, ge=0, le=1)
    """First part of the steps, in which shared words attend where they attend in the source; the authors' 0.8."""
    self_fraction: float = Field(0.4, ge=0, le=1)
    """First part of the steps, in which self-attention is the source's; the authors' 0.4."""
    self_tokens: int = Field(ge=0)
    """Self-attention is taken over in layers of at most this many tokens; the authors' 256 at latents of 64 x 64."""
    null_too: bool = False
    """Whether it is also taken over in the half without text, as InstructPix2Pix does."""
    blend: WordBlend | None = None
    """LocalBlend; null: without it."""

    @property
    def aligns_words(self) -> bool:
        """Whether its captions are aligned word by word; they must then fit into the tokenizer whole."""
        return self.cross_fraction > 0 or self.blend is not None


def _method(recipe: Any) -> str:
    return str(recipe.get("method", "soft_mask") if isinstance(recipe, Mapping) else recipe.method)


Recipe = Annotated[
    Annotated[SoftMaskRecipe, Tag("soft_mask")] | Annotated[PromptToPromptRecipe, Tag("prompt_to_prompt")],
    Discriminator(_method),
]


def _check_tasks(recipes: dict[str, tuple[Recipe, ...]]) -> dict[str, tuple[Recipe, ...]]:
    for name, candidates in recipes.items():
        if name != DEFAULT and get_task(name).annotated:
            raise ValueError(f"want no recipe for {name!r}: an annotator draws its targets")
        if not candidates:
            raise ValueError(f"want at least one recipe for {name!r}, got none; leave it out to use {DEFAULT!r}")
    if DEFAULT not in recipes:
        raise ValueError(f"want recipes under {DEFAULT!r} for the tasks that have none of their own, got {sorted(recipes)}")
    return recipes


Recipes = Annotated[dict[str, tuple[Recipe, ...]], AfterValidator(_check_tasks)]
"""Task -> its recipes, each of which makes one candidate. A generated task without an entry uses `default`."""


def recipes_for(recipes: Recipes, task: str) -> tuple[Recipe, ...]:
    """The recipes of a task; none for an annotated task."""
    return () if get_task(task).annotated else recipes.get(task, recipes[DEFAULT])


def describe_recipe(recipe: Recipe, number: int, **facts: Any) -> dict[str, Any]:
    """What a pair records of how it was generated."""
    return {"kind": recipe.method, "candidate": number, **recipe.model_dump(mode="json", exclude={"method"}), **facts}
