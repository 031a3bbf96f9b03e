"""Match the objects of a caption with the objects read from an image, and reread the image if one is missing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from emuedit.data.records import Pair
from toyworld.edits.caption_parser import CaptionObject
from toyworld.reading import Reading, SeenObject
from toyworld.reading.object_search import find_objects
from toyworld.reading.scene_references import SCENE_CLASSES
from toyworld.reading.toy_annotators import scenes_from_readings
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import POSITION_PHRASES, object_noun
from toyworld.scenes.palette import CELL_CENTRES, COLOURS, TEXTURES

SAME_PLACE_PX = 8.0
"""Largest distance between the centres of two objects at the same place."""
MAX_SCORE_DEFICIT = 0.15
"""A hypothesis is plausible if its score is at most this share below the best: generated objects are distorted."""


@dataclass(frozen=True)
class ReadImage:
    """An image and the scene that was read from it. The object masks are in the order of `reading.objects`."""

    pixels: np.ndarray  # uint8 [64, 64, 3]
    reading: Reading
    rendered: np.ndarray  # uint8 [64, 64, 3], rendering of the reading
    masks: np.ndarray  # bool [K, 64, 64], pixels of each object in the rendering

    def mask(self, seen: SeenObject) -> np.ndarray:
        """bool [64, 64]: the pixels of an object of the reading."""
        return np.asarray(self.masks[self.reading.objects.index(seen)])


def build_read_images(pixels: np.ndarray, readings: list[Reading]) -> list[ReadImage]:
    """Combine images uint8 [N, 64, 64, 3] with their N readings."""
    truth = render.truth(scenes_from_readings(readings))
    masks = truth.masks
    return [ReadImage(pixels[n], reading, truth.images[n], masks[n, : reading.count]) for n, reading in enumerate(readings)]


def reread_expecting(
    image: ReadImage, expected: CaptionObject, attributes: set[str], competitor: CaptionObject | None
) -> ReadImage:
    """Reread the image, given an object that it should show, which may have been confused with a similar one.

    The new reading contains the expected object if a plausible hypothesis agrees with it in these attributes and ranks
    above every hypothesis that agrees with the `competitor`. Otherwise the image is returned unchanged.
    """
    reading = image.reading
    if find_object(reading, expected, attributes) is not None:
        return image
    scene_class = np.array([reading.background, reading.condition, reading.style])
    class_index = int(np.flatnonzero((scene_class == SCENE_CLASSES).all(1))[0])
    for hypotheses, score in find_objects(image.pixels.astype(np.float32) / 255, class_index):
        if score[0] <= 0:
            continue
        fields = ("kind", "colour", "texture", "variant", "radius", "x", "y")
        columns = np.stack([getattr(hypotheses, name) for name in fields], 1)
        is_plausible = score >= (1 - MAX_SCORE_DEFICIT) * score[0]
        candidates = [_to_seen_object(*row) for row in columns[is_plausible].tolist()]
        rank = _first_match(candidates, expected, attributes)
        competitor_rank = None if competitor is None else _first_match(candidates, competitor, attributes)
        if rank is not None and (competitor_rank is None or rank < competitor_rank):
            new = candidates[rank]
            others = tuple(seen for seen in reading.objects if not same_place(seen, new))
            return build_read_images(image.pixels[None], [replace(reading, objects=(new, *others)[:3])])[0]
    return image


def _to_seen_object(kind: int, colour: int, texture: int, variant: int, radius: int, x: int, y: int) -> SeenObject:
    cell = int(np.hypot(*(CELL_CENTRES - np.array([x, y])).T).argmin())
    return SeenObject(kind, colour, texture, variant, cell, radius, x, y, {})


def _first_match(candidates: list[SeenObject], described: CaptionObject, attributes: set[str]) -> int | None:
    """Index of the first candidate that agrees with the description, or None."""
    return next((rank for rank, seen in enumerate(candidates) if matches(seen, described, attributes)), None)


def same_object(first: SeenObject, second: SeenObject, compare_attributes: bool = True) -> bool:
    """Whether two readings show the same object: at nearly the same position, with the same attributes.

    `compare_attributes=False` compares only the place: across styles the attributes are less reliable.
    """
    names = ("kind", "variant", "colour", "texture") if compare_attributes else ()
    is_close = np.hypot(second.x - first.x, second.y - first.y) <= SAME_PLACE_PX / 2
    return bool(is_close) and all(getattr(second, name) == getattr(first, name) for name in names)


def named_attributes(pair: Pair, described: CaptionObject) -> set[str]:
    """The attributes by which the instruction names the object: its noun, and its colour if the text contains it."""
    names_colour = re.search(rf"\b{described.colour}\b", pair.instruction)
    return {noun_attribute(pair.task)} | ({"colour"} if names_colour else set())


def noun_attribute(task: str) -> str:
    """How strictly nouns are compared: "noun" includes the letter of a card or the pose of a person, "kind" does not.

    Only the task `text` edits letters. For other tasks the kind is enough, because kinds are distinct within a scene
    and letters and poses are hard to read.
    """
    return "noun" if task == "text" else "kind"


def find_object(
    reading: Reading, described: CaptionObject, attributes: set[str], near: SeenObject | None = None
) -> SeenObject | None:
    """The object of the reading that agrees with the description in these attributes, or None.

    If there are several, an object in the described position is preferred. `near` limits the search to its place.
    """
    candidates = [
        seen for seen in reading.objects if matches(seen, described, attributes) and (near is None or same_place(seen, near))
    ]
    cell = phrase_row(POSITION_PHRASES, described.position)
    return min(candidates, key=lambda seen: seen.cell != cell, default=None)


def matches(seen: SeenObject, described: CaptionObject, attributes: set[str]) -> bool:
    """Whether the object agrees with the description in all these attributes.

    Attributes: kind, noun (kind with letter or pose), colour, texture, size, position.
    """
    noun = object_noun(seen.kind, seen.variant)
    agreement = {
        "kind": noun.split()[0] == described.noun.split()[0],
        "noun": noun == described.noun,
        "colour": COLOURS[seen.colour] == described.colour,
        "texture": TEXTURES[seen.texture] == (described.texture or "plain"),
        "size": seen.big == (described.size == "big"),
        "position": seen.cell == phrase_row(POSITION_PHRASES, described.position),
    }
    return all(agreement[name] for name in attributes)


def same_place(first: SeenObject, second: SeenObject) -> bool:
    """Whether the centres of two objects are at most `SAME_PLACE_PX` apart."""
    return bool(np.hypot(first.x - second.x, first.y - second.y) <= SAME_PLACE_PX)


def phrase_row(table: Mapping[str, tuple[str, ...]], phrase: str) -> int:
    """Index of the row of a phrase table that contains the phrase. It equals the index of the value in `palette`."""
    return next(row for row, phrases in enumerate(table.values()) if phrase in phrases)
