"""Detection phrases, such as 'big red star' or 'card with the letter A', and which objects of a scene they match."""

import random
from dataclasses import dataclass, fields

import numpy as np

from toyworld.scenes.caption_grammar import POSITION_PHRASES, indefinite_article, object_noun
from toyworld.scenes.palette import CARD, CELLS, COLOURS, KINDS, LETTERS, POSES, TEXTURES
from toyworld.scenes.scene import Scenes

ANY = -1


@dataclass(frozen=True)
class Phrase:
    """The attributes that an object must have: indices into the lists of `palette`, or ANY. `big` is 0, 1 or ANY."""

    kind: int = ANY
    colour: int = ANY
    texture: int = ANY
    big: int = ANY
    variant: int = ANY
    cell: int = ANY

    def text(self, rng: random.Random | None = None) -> str:
        """The phrase as text. `rng` chooses the wording of the position and sometimes adds an article."""
        words = []
        if self.big != ANY:
            words.append("big" if self.big else "small")
        if self.colour != ANY:
            words.append(COLOURS[self.colour])
        if self.texture != ANY:
            words.append(TEXTURES[self.texture])
        words.append(self._noun())
        if self.cell != ANY:
            words.append((rng.choice if rng else min)(POSITION_PHRASES[CELLS[self.cell]]))
        if rng and rng.random() < 0.3:
            words.insert(0, rng.choice(("the", indefinite_article(words[0]))))
        return " ".join(words)

    def _noun(self) -> str:
        if self.kind == ANY:
            return "object"
        if self.variant == ANY:
            return KINDS[self.kind]
        return object_noun(self.kind, self.variant)


def match_objects(phrases: list[Phrase], scenes: Scenes) -> np.ndarray:
    """Which objects of N scenes the P phrases match; bool [N, 3, P]."""
    matches = np.broadcast_to(scenes.present[..., None], (*scenes.kind.shape, len(phrases))).copy()
    for field in fields(Phrase):
        required = np.array([getattr(phrase, field.name) for phrase in phrases])
        matches &= (required == ANY) | (getattr(scenes, field.name)[..., None] == required)
    return matches


def phrase_for_object(scenes: Scenes, n: int, slot: int, rng: random.Random) -> Phrase:
    """A phrase that matches the object in `slot` of scene n, with a random subset of its attributes."""
    kind, colour = int(scenes.kind[n, slot]), int(scenes.colour[n, slot])
    texture, variant = int(scenes.texture[n, slot]), int(scenes.variant[n, slot])
    cell = int(scenes.cell[n, slot]) if rng.random() < 0.08 else ANY
    colour = colour if rng.random() < 0.65 else ANY
    if rng.random() < 0.06:
        return Phrase(colour=colour, cell=cell)
    if kind >= CARD:
        return Phrase(kind, colour, variant=variant if rng.random() < 0.7 else ANY, cell=cell)
    texture = texture if texture and rng.random() < 0.6 else ANY
    big = int(scenes.big[n, slot]) if rng.random() < 0.25 else ANY
    return Phrase(kind, colour, texture, big, cell=cell)


def random_phrase(rng: random.Random) -> Phrase:
    """A phrase with random attributes; most scenes have no object that matches it."""
    kind = rng.randrange(len(KINDS))
    colour = rng.randrange(len(COLOURS)) if rng.random() < 0.65 else ANY
    if kind >= CARD:
        n_variants = len(LETTERS) if kind == CARD else len(POSES)
        return Phrase(kind, colour, variant=rng.randrange(n_variants) if rng.random() < 0.7 else ANY)
    texture = rng.randrange(1, len(TEXTURES)) if rng.random() < 0.4 else ANY
    return Phrase(kind, colour, texture, rng.randrange(2) if rng.random() < 0.25 else ANY)


def sample_phrases(scenes: Scenes, n_phrases: int, rng: random.Random) -> list[Phrase]:
    """Distinct phrases for a batch of scenes: about two thirds match one of its objects, the others are random."""
    objects = [(int(n), int(slot)) for n, slot in np.argwhere(scenes.present)]
    phrases: dict[Phrase, None] = {}  # a dict keeps the order of insertion, a set does not
    while len(phrases) < n_phrases:
        n, slot = rng.choice(objects) if objects and rng.random() < 0.67 else (ANY, ANY)
        phrases[random_phrase(rng) if n == ANY else phrase_for_object(scenes, n, slot, rng)] = None
    return list(phrases)
