"""Are things said and things seen the same? A reading that took one for another gets a second look."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from emuedit.data.records import Pair
from toyworld.edits.caption_parser import Thing
from toyworld.reading import Reading, Seen
from toyworld.reading.object_search import find as tried_objects
from toyworld.reading.scene_classifier import LOOKS
from toyworld.reading.toy_annotators import scene
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import WHERE, called
from toyworld.scenes.palette import CELL_CENTRES, COLOURS, TEXTURES

PLACE_PX = 8.0
"""Most distance between two readings of one object."""
DOUBT = 0.15
"""Share of its gain by which a guess may stand behind the best one: painted objects are blurred, bent and spotted."""


@dataclass(frozen=True)
class Picture:
    """Pixels uint8 [64, 64, 3], what was read, how that is drawn, and where its objects are (bool [K, 64, 64])."""

    pixels: np.ndarray
    seen: Reading
    drawn: np.ndarray
    masks: np.ndarray


def shown(pixels: np.ndarray, readings: list[Reading]) -> list[Picture]:
    """Pictures uint8 [N, 64, 64, 3] and their readings."""
    truth = render.truth(scene(readings))
    masks = truth.masks
    return [Picture(pixels[i], one, truth.images[i], masks[i, : one.count]) for i, one in enumerate(readings)]


def looked_again(picture: Picture, thing: Thing, words: set[str], rival: Thing | None) -> Picture:
    """The picture, read so that it shows the thing where that explains it nearly as well as what was read, and better than the
    `rival` does; else as it was.
    """
    if find(picture.seen, thing, words) is not None:
        return picture
    seen = picture.seen
    look = int(np.flatnonzero((np.array([seen.background, seen.condition, seen.style]) == LOOKS).all(1))[0])
    for guesses, gain in tried_objects(picture.pixels.astype(np.float32) / 255, look):
        if gain[0] <= 0:
            continue
        columns = (guesses.kind, guesses.colour, guesses.texture, guesses.variant, guesses.radius, guesses.x, guesses.y)
        some = [_seen(*row) for row in np.stack(columns, 1)[gain >= (1 - DOUBT) * gain[0]].tolist()]
        fits = next((one for one in some if shows(one, thing, words)), None)
        against = next((one for one in some if rival is not None and shows(one, rival, words)), None)
        if fits is not None and (against is None or some.index(fits) < some.index(against)):
            others = tuple(one for one in seen.objects if not near(one, fits))
            return shown(picture.pixels[None], [replace(seen, objects=(fits, *others)[:3])])[0]
    return picture


def _seen(kind: int, colour: int, texture: int, variant: int, radius: int, x: int, y: int) -> Seen:
    cell = int(np.hypot(*(CELL_CENTRES - np.array([x, y])).T).argmin())
    return Seen(kind, colour, texture, variant, cell, radius, x, y, {})


def like(one: Seen, other: Seen, whole: bool = True) -> bool:
    """Two readings of one object; not `whole`: only its place, for a picture in another style is read less surely."""
    same = ("kind", "variant", "colour", "texture") if whole else ()
    close = np.hypot(other.x - one.x, other.y - one.y) <= PLACE_PX / 2
    return bool(close) and all(getattr(other, name) == getattr(one, name) for name in same)


def named(pair: Pair, thing: Thing) -> set[str]:
    """Which words for a thing stand in the instruction: what it is always counts."""
    return {noun(pair.task)} | ({"colour"} if re.search(rf"\b{thing.colour}\b", pair.instruction) else set())


def noun(task: str) -> str:
    """Letters and poses count where they are edited: elsewhere there is no other card or person, and they are hard to read."""
    return "noun" if task == "text" else "kind"


def find(seen: Reading, thing: Thing, words: set[str], beside: Seen | None = None) -> Seen | None:
    """The object that is what the words of the thing say, the one nearest to its place if there are several."""
    fitting = [one for one in seen.objects if shows(one, thing, words) and (beside is None or near(one, beside))]
    cell = index(WHERE, thing.where)
    return min(fitting, key=lambda one: (one.cell != cell, seen.objects.index(one)), default=None)


def shows(one: Seen, thing: Thing, words: set[str]) -> bool:
    """Is the object what these words of the thing say: kind, noun (with letter or pose), colour, texture, size, where?"""
    facts = {
        "kind": called(one.kind, one.variant).split()[0] == thing.noun.split()[0],
        "noun": called(one.kind, one.variant) == thing.noun,
        "colour": COLOURS[one.colour] == thing.colour,
        "texture": TEXTURES[one.texture] == (thing.texture or "plain"),
        "size": one.big == (thing.size == "big"),
        "where": one.cell == index(WHERE, thing.where),
    }
    return all(facts[word] for word in words)


def near(one: Seen, other: Seen) -> bool:
    """In one place."""
    return bool(np.hypot(one.x - other.x, one.y - other.y) <= PLACE_PX)


def index(table: Mapping[str, tuple[str, ...]], words: str) -> int:
    """Which row of a table of phrases holds these words."""
    return next(i for i, phrases_ in enumerate(table.values()) if words in phrases_)
