"""Phrases that people search objects with ('big red star', 'card with the letter A'), and which objects they mean."""

import random
from dataclasses import dataclass, fields

import numpy as np

from toyworld.scenes.caption_grammar import WHERE, article, called
from toyworld.scenes.palette import CARD, CELLS, COLOURS, KINDS, LETTERS, POSES, TEXTURES
from toyworld.scenes.scene import Scenes

ANY = -1


@dataclass(frozen=True)
class Phrase:
    """What is asked of an object: an index into the lists of `palette`, or ANY. `big` is 0, 1 or ANY."""

    kind: int = ANY
    colour: int = ANY
    texture: int = ANY
    big: int = ANY
    variant: int = ANY
    cell: int = ANY

    def text(self, say: random.Random | None = None) -> str:
        """In words; `say` now and then puts an article in front and chooses among wordings."""
        words = []
        if self.big != ANY:
            words.append("big" if self.big else "small")
        if self.colour != ANY:
            words.append(COLOURS[self.colour])
        if self.texture != ANY:
            words.append(TEXTURES[self.texture])
        words.append(self._noun())
        if self.cell != ANY:
            words.append((say.choice if say else min)(WHERE[CELLS[self.cell]]))
        if say and say.random() < 0.3:
            words.insert(0, say.choice(("the", article(words[0]))))
        return " ".join(words)

    def _noun(self) -> str:
        if self.kind == ANY:
            return "object"
        if self.variant == ANY:
            return KINDS[self.kind]
        return called(self.kind, self.variant)


def means(asked: list[Phrase], all_scenes: Scenes) -> np.ndarray:
    """Which objects the phrases mean; bool [N, 3, P]."""
    match = np.broadcast_to(all_scenes.present[..., None], (*all_scenes.kind.shape, len(asked))).copy()
    for field in fields(Phrase):
        wanted = np.array([getattr(phrase, field.name) for phrase in asked])
        match &= (wanted == ANY) | (getattr(all_scenes, field.name)[..., None] == wanted)
    return match


def about(all_scenes: Scenes, n: int, slot: int, say: random.Random) -> Phrase:
    """A phrase that means the object in `slot` of scene n, with some of its attributes."""
    kind, colour = int(all_scenes.kind[n, slot]), int(all_scenes.colour[n, slot])
    texture, variant = int(all_scenes.texture[n, slot]), int(all_scenes.variant[n, slot])
    cell = int(all_scenes.cell[n, slot]) if say.random() < 0.08 else ANY
    colour = colour if say.random() < 0.65 else ANY
    if say.random() < 0.06:
        return Phrase(colour=colour, cell=cell)
    if kind >= CARD:
        return Phrase(kind, colour, variant=variant if say.random() < 0.7 else ANY, cell=cell)
    texture = texture if texture and say.random() < 0.6 else ANY
    big = int(all_scenes.big[n, slot]) if say.random() < 0.25 else ANY
    return Phrase(kind, colour, texture, big, cell=cell)


def any_phrase(say: random.Random) -> Phrase:
    """A phrase of no scene in particular: mostly absent from a picture."""
    kind = say.randrange(len(KINDS))
    colour = say.randrange(len(COLOURS)) if say.random() < 0.65 else ANY
    if kind >= CARD:
        count = len(LETTERS) if kind == CARD else len(POSES)
        return Phrase(kind, colour, variant=say.randrange(count) if say.random() < 0.7 else ANY)
    texture = say.randrange(1, len(TEXTURES)) if say.random() < 0.4 else ANY
    return Phrase(kind, colour, texture, say.randrange(2) if say.random() < 0.25 else ANY)


def ask(all_scenes: Scenes, n_phrases: int, say: random.Random) -> list[Phrase]:
    """Distinct phrases for a batch: two of three about an object of its scenes, the rest about anything."""
    objects = [(int(n), int(slot)) for n, slot in np.argwhere(all_scenes.present)]
    found: dict[Phrase, None] = {}
    while len(found) < n_phrases:
        n, slot = say.choice(objects) if objects and say.random() < 0.67 else (ANY, ANY)
        found[any_phrase(say) if n == ANY else about(all_scenes, n, slot, say)] = None
    return list(found)
