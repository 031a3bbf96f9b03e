"""How each task makes its pairs: a list of candidates a task, in `params.yaml`. Vision tasks are drawn by an annotator."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from emuedit import config
from emuedit.synthesis.masks import MaskRecipe
from emuedit.tasks import task


class _Way(config.Params):
    """One way to make the second picture out of the first. Fractions are of the steps."""

    mask: MaskRecipe | None
    """Where the second caption rules, and where the scores look; null: everywhere."""
    guidance: float = Field(ge=1)
    """Classifier-free guidance of the second caption."""

    @property
    def needs_objects(self) -> bool:
        """Whether its mask is made of objects, which a detector has to find first."""
        return self.mask is not None and self.mask.noise_difference is None


class Candidate(_Way):
    """Held by its mask: soft-mask attention control."""

    source_fraction: float = Field(ge=0, le=1)
    """First part of the steps, in which the latent is the source's."""
    self_fraction: float = Field(ge=0, le=1)
    """First part of the steps, in which self-attention takes the source's queries and keys."""
    blend_from: float = Field(ge=0, le=1)
    """From here on the source's latents are laid over the rest of the mask after each step."""
    blend_to: float = Field(ge=0, le=1)
    """Until here."""

    @model_validator(mode="after")
    def _ordered(self) -> Candidate:
        if self.blend_from > self.blend_to:
            raise ValueError(f"blend_from must not exceed blend_to, got {self.blend_from} and {self.blend_to}")
        return self


class WordBlend(config.Params):
    """LocalBlend of Prompt-to-Prompt: where the changed words of neither caption look, the source's latents stay."""

    n_tokens: int = Field(ge=1)
    """Layers of so many tokens are read; the authors' 256 of latents of 64 x 64."""
    threshold: float = Field(ge=0, lt=1)
    """Of a map divided by its largest value; the authors' 0.3."""
    start: float = Field(ge=0, le=1)
    """Part of the steps before which nothing is blended; the authors' 0.2."""


class Words(_Way):
    """Held by its words, whose attention maps hold what both captions say: Prompt-to-Prompt (Hertz et al., arXiv 2208.01626).

    The mask holds nothing; it only tells the scores where to look.
    """

    cross_fraction: float = Field(ge=0, le=1)
    """First part of the steps, in which words look where they look in the source; the authors' 0.8."""
    self_fraction: float = Field(ge=0, le=1)
    """First part of the steps, in which self-attention is the source's; the authors' 0.4."""
    self_tokens: int = Field(ge=0)
    """That in layers of at most so many tokens; the authors' 256 of latents of 64 x 64."""
    null_too: bool
    """That in the half without text too, as InstructPix2Pix does."""
    blend: WordBlend | None
    """LocalBlend; null: without."""

    @property
    def reads_words(self) -> bool:
        """Whether its captions are taken apart: they must then fit the tokenizer whole."""
        return self.cross_fraction > 0 or self.blend is not None


def _way(candidate: Any) -> str:
    held_by_words = isinstance(candidate, Words) or (isinstance(candidate, dict) and "cross_fraction" in candidate)
    return "words" if held_by_words else "control"


AnyCandidate = Annotated[Annotated[Candidate, Tag("control")] | Annotated[Words, Tag("words")], Discriminator(_way)]
Candidates = tuple[AnyCandidate, ...]


class Recipes(config.Params):
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


def described(candidate: Candidate | Words, number: int, **facts: Any) -> dict[str, Any]:
    """What a pair keeps of how it was painted."""
    return {"kind": _way(candidate), "candidate": number, **candidate.model_dump(mode="json"), **facts}
