"""How each task makes its pairs: a list of candidates a task, in `params.yaml`. Vision tasks are drawn by an annotator."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from emuedit import params as house
from emuedit.synthesis.masks import MaskRecipe
from emuedit.tasks import task


class Candidate(house.Params):
    """One way to make the second picture out of the first. Fractions are of the steps."""

    mask: MaskRecipe | None
    """Where the second caption rules; null: everywhere."""
    source_fraction: float = Field(ge=0, le=1)
    """First part of the steps, in which the latent is the source's."""
    self_fraction: float = Field(ge=0, le=1)
    """First part of the steps, in which self-attention takes the source's queries and keys."""
    blend_from: float = Field(ge=0, le=1)
    """From here on the source's latents are laid over the rest of the mask after each step."""
    blend_to: float = Field(ge=0, le=1)
    """Until here."""
    guidance: float = Field(ge=1)
    """Classifier-free guidance of the second caption."""

    @model_validator(mode="after")
    def _ordered(self) -> Candidate:
        if self.blend_from > self.blend_to:
            raise ValueError(f"blend_from must not exceed blend_to, got {self.blend_from} and {self.blend_to}")
        return self

    @property
    def needs_objects(self) -> bool:
        """Whether its mask is made of objects, which a detector has to find first."""
        return self.mask is not None and self.mask.noise_difference is None


Candidates = tuple[Candidate, ...]


class Recipes(house.Params):
    """The candidates of every task that is painted."""

    local: Candidates = Field(min_length=1)
    """Mask of the object."""
    remove: Candidates = Field(min_length=1)
    """Mask of the object, wide enough for its rim and shadow."""
    add: Candidates = Field(min_length=1)
    """Made backwards: the object is painted first and removed, then the two pictures change places."""
    texture: Candidates = Field(min_length=1)
    """Mask of the object, its shape kept by self-attention."""
    background: Candidates = Field(min_length=1)
    """All but the objects."""
    global_: Candidates = Field(min_length=1, alias="global")
    """Everywhere, the structure kept by self-attention."""
    style: Candidates = Field(min_length=1)
    """Everywhere, the structure kept by self-attention."""
    text: Candidates = Field(min_length=1)
    """Mask of what is written upon."""

    def of(self, name: str) -> Candidates:
        """The candidates of a task; none for a vision task, whose targets an annotator draws."""
        if is_drawn(name):
            return ()
        found: Candidates = getattr(self, "global_" if name == "global" else name)
        return found


def is_drawn(name: str) -> bool:
    """Whether an annotator draws the target of this task."""
    return task(name).family == "vision"


def described(candidate: Candidate, number: int, **facts: Any) -> dict[str, Any]:
    """What a pair keeps of how it was painted."""
    return {"kind": "control", "candidate": number, **candidate.model_dump(mode="json"), **facts}
