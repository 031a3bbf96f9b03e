"""What people say about scenes: captions, in several wordings, and the words that the edits share."""

import random
from collections.abc import Iterator

from toyworld.scenes.palette import BACKGROUNDS, CARD, CELLS, COLOURS, CONDITIONS, KINDS, LETTERS, PERSON, POSES, STYLES, TEXTURES
from toyworld.scenes.scene import Scenes, numbers, scenes

WHERE = {
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
    "centre": ("in the centre", "in the middle"),
}
GROUND = {
    "grass": ("on grass", "on a lawn", "on a grass background"),
    "sand": ("on sand", "on a beach", "on a sand background"),
    "sky": ("in the sky", "against the sky", "on a sky background"),
    "brick": ("on a brick wall", "on bricks", "on a brick background"),
    "snow": ("on snow", "on snowy ground", "on a snow background"),
    "water": ("on water", "on the sea", "on a water background"),
    "wood": ("on wood", "on wooden planks", "on a wood background"),
    "stone": ("on stone", "on cobblestones", "on a stone background"),
}
WEATHER = {
    "clear": ("",),
    "night": ("at night", "in the dark of night"),
    "fog": ("in fog", "in thick fog"),
    "rain": ("in the rain", "in heavy rain"),
    "snowfall": ("in snowfall", "while snow is falling"),
    "sunset": ("at sunset", "in the light of sunset"),
}
NOBODY_THERE = "an empty scene"
STYLE = {
    "photo": ("",),
    "pencil sketch": ("as a pencil sketch", "in pencil sketch style"),
    "pixel art": ("as pixel art", "in pixel art style"),
    "cartoon": ("as a cartoon", "in cartoon style"),
    "watercolour": ("as a watercolour", "in watercolour style"),
}


def noun(all_scenes: Scenes, n: int, slot: int) -> str:
    """What the object in a slot is called."""
    return called(all_scenes.kind[n, slot], all_scenes.variant[n, slot])


def called(kind: int, variant: int) -> str:
    """What an object is, without its colour: 'star', 'card with the letter A', 'person waving'."""
    if kind == CARD:
        return f"card with the letter {LETTERS[variant]}"
    if kind == PERSON:
        pose = POSES[variant]
        return f"person {pose}" if pose == "waving" else f"person with {pose}"
    return KINDS[kind]


def describe(all_scenes: Scenes, n: int, slot: int, say: random.Random) -> str:
    """An object in full: 'a big red striped star on the left'."""
    words = []
    kind = all_scenes.kind[n, slot]
    if kind < CARD:
        words.append("big" if all_scenes.big[n, slot] else "small")
    words.append(COLOURS[all_scenes.colour[n, slot]])
    texture = all_scenes.texture[n, slot]
    if texture:
        words.append(TEXTURES[texture])
    words.append(noun(all_scenes, n, slot))
    return f"{article(words[0])} {' '.join(words)} {say.choice(WHERE[CELLS[all_scenes.cell[n, slot]]])}"


def article(words: str) -> str:
    """'a' or 'an', as the words want it."""
    return "an" if words[0] in "aeiou" else "a"


def listed(things: list[str]) -> str:
    """'a', 'a and b', 'a, b and c', or what is said of an empty scene."""
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things) or NOBODY_THERE


def caption(all_scenes: Scenes, n: int, say: random.Random) -> str:
    """A caption of scene n: objects in any order, background, weather, style.

    Every part has its own chance, drawn whether the part is there or not: what an edit leaves alone is said in the same words.
    """
    slots = range(all_scenes.kind.shape[1])
    first = [say.random() for _ in slots]
    voices = [random.Random(say.random()) for _ in range(len(slots) + 3)]
    present = sorted((s for s in slots if all_scenes.kind[n, s] >= 0), key=first.__getitem__)
    parts = [
        listed([describe(all_scenes, n, s, voices[s]) for s in present]),
        voices[-3].choice(GROUND[BACKGROUNDS[all_scenes.background[n]]]),
        voices[-2].choice(WEATHER[CONDITIONS[all_scenes.condition[n]]]),
        voices[-1].choice(STYLE[STYLES[all_scenes.style[n]]]),
    ]
    return " ".join(part for part in parts if part)


def pointed_at(thing: str, colour: str, say: random.Random) -> str:
    """How an instruction points at an object: 'the star' or 'the red star' (kinds are distinct within a scene)."""
    return f"the {thing}" if say.random() < 0.5 else f"the {colour} {thing}"


def voice(number: int, *purpose: object) -> random.Random:
    """The random choice of words for a scene number and a purpose: the same whenever it is asked."""
    return random.Random(f"{int(number)}/" + "/".join(map(str, purpose)))


def all_captions(all_scenes: Scenes, purpose: str = "caption") -> list[str]:
    """One caption a scene."""
    return [caption(all_scenes, n, voice(all_scenes.number[n], purpose)) for n in range(len(all_scenes))]


def captions(split: str, start: int, n: int) -> list[str]:
    """Captions of the scenes `start .. start + n` of a split ('train' or 'held_out'): a caption source for `params.yaml`."""
    return all_captions(scenes(numbers(split, start, n)))


def vocabulary() -> Iterator[str]:
    """Phrases that together hold every word of a caption."""
    for table in (WHERE, GROUND, WEATHER, STYLE):
        for phrases in table.values():
            yield from phrases
    yield from (*COLOURS, *TEXTURES, *KINDS, *POSES, *LETTERS, "a big small card with the letter person and", NOBODY_THERE)
