"""Captions of scenes in several random wordings, and the phrases that edit instructions share with them."""

import random
from collections.abc import Iterator

from toyworld.scenes.palette import BACKGROUNDS, CARD, CELLS, COLOURS, CONDITIONS, KINDS, LETTERS, PERSON, POSES, STYLES, TEXTURES
from toyworld.scenes.scene import Scenes, generate_scenes, scene_numbers

# For every attribute value: its phrases, from which a caption picks one at random.
POSITION_PHRASES = {
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
    "centre": ("in the centre", "in the middle"),
}
BACKGROUND_PHRASES = {
    "grass": ("on grass", "on a lawn", "on a grass background"),
    "sand": ("on sand", "on a beach", "on a sand background"),
    "sky": ("in the sky", "against the sky", "on a sky background"),
    "brick": ("on a brick wall", "on bricks", "on a brick background"),
    "snow": ("on snow", "on snowy ground", "on a snow background"),
    "water": ("on water", "on the sea", "on a water background"),
    "wood": ("on wood", "on wooden planks", "on a wood background"),
    "stone": ("on stone", "on cobblestones", "on a stone background"),
}
WEATHER_PHRASES = {
    "clear": ("",),
    "night": ("at night", "in the dark of night"),
    "fog": ("in fog", "in thick fog"),
    "rain": ("in the rain", "in heavy rain"),
    "snowfall": ("in snowfall", "while snow is falling"),
    "sunset": ("at sunset", "in the light of sunset"),
}
STYLE_PHRASES = {
    "photo": ("",),
    "pencil sketch": ("as a pencil sketch", "in pencil sketch style"),
    "pixel art": ("as pixel art", "in pixel art style"),
    "cartoon": ("as a cartoon", "in cartoon style"),
    "watercolour": ("as a watercolour", "in watercolour style"),
}
EMPTY_SCENE = "an empty scene"
"""Replaces the objects in the caption of a scene without objects."""


def slot_noun(scenes: Scenes, n: int, slot: int) -> str:
    """The noun phrase of the object in slot `slot` of scene n (see `object_noun`)."""
    return object_noun(scenes.kind[n, slot], scenes.variant[n, slot])


def object_noun(kind: int, variant: int) -> str:
    """The noun phrase of an object without its colour: 'star', 'card with the letter A', 'person waving'."""
    if kind == CARD:
        return f"card with the letter {LETTERS[variant]}"
    if kind == PERSON:
        pose = POSES[variant]
        return f"person {pose}" if pose == "waving" else f"person with {pose}"
    return KINDS[kind]


def describe_object(scenes: Scenes, n: int, slot: int, rng: random.Random) -> str:
    """A full description of an object: 'a big red striped star on the left'."""
    words = []
    kind = scenes.kind[n, slot]
    if kind < CARD:
        words.append("big" if scenes.big[n, slot] else "small")
    words.append(COLOURS[scenes.colour[n, slot]])
    texture = scenes.texture[n, slot]
    if texture:
        words.append(TEXTURES[texture])
    words.append(slot_noun(scenes, n, slot))
    return f"{indefinite_article(words[0])} {' '.join(words)} {rng.choice(POSITION_PHRASES[CELLS[scenes.cell[n, slot]]])}"


def indefinite_article(words: str) -> str:
    """'a' or 'an', by the first letter of the words that follow."""
    return "an" if words[0] in "aeiou" else "a"


def join_list(phrases: list[str]) -> str:
    """'a', 'a and b', 'a, b and c', or `EMPTY_SCENE` for an empty list."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases) or EMPTY_SCENE


def caption(scenes: Scenes, n: int, rng: random.Random) -> str:
    """A caption of scene n: objects in random order, background, weather, style.

    Every part has a separate random generator, which is seeded whether or not the part is present. So the captions before
    and after an edit use the same words for everything that the edit does not change.
    """
    slots = range(scenes.kind.shape[1])
    order = [rng.random() for _ in slots]
    part_rngs = [random.Random(rng.random()) for _ in range(len(slots) + 3)]
    present = sorted((s for s in slots if scenes.kind[n, s] >= 0), key=order.__getitem__)
    parts = [
        join_list([describe_object(scenes, n, s, part_rngs[s]) for s in present]),
        part_rngs[-3].choice(BACKGROUND_PHRASES[BACKGROUNDS[scenes.background[n]]]),
        part_rngs[-2].choice(WEATHER_PHRASES[CONDITIONS[scenes.condition[n]]]),
        part_rngs[-1].choice(STYLE_PHRASES[STYLES[scenes.style[n]]]),
    ]
    return " ".join(part for part in parts if part)


def referring_expression(noun: str, colour: str, rng: random.Random) -> str:
    """How an instruction refers to an object: 'the star' or 'the red star' (kinds are distinct within a scene)."""
    return f"the {noun}" if rng.random() < 0.5 else f"the {colour} {noun}"


def wording_rng(number: int, *purpose: object) -> random.Random:
    """A random generator for the choice of words, seeded by the scene number and the purpose."""
    return random.Random(f"{int(number)}/" + "/".join(map(str, purpose)))


def all_captions(scenes: Scenes, purpose: str = "caption") -> list[str]:
    """One caption per scene."""
    return [caption(scenes, n, wording_rng(scenes.number[n], purpose)) for n in range(len(scenes))]


def captions(split: str, start: int, n: int) -> list[str]:
    """Captions of the scenes `start .. start + n - 1` of a split, 'train' or 'held_out'.

    `params.yaml` can name this function's file as a caption source.
    """
    return all_captions(generate_scenes(scene_numbers(split, start, n)))


def vocabulary() -> Iterator[str]:
    """Yield phrases that together contain every word of the captions."""
    for table in (POSITION_PHRASES, BACKGROUND_PHRASES, WEATHER_PHRASES, STYLE_PHRASES):
        for phrases in table.values():
            yield from phrases
    yield from (*COLOURS, *TEXTURES, *KINDS, *POSES, *LETTERS, "a big small card with the letter person and", EMPTY_SCENE)
