"""Compare readings of images with given scenes, and measure changes outside a region."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from toyworld.edits.exact_judge import l1, masked_mean
from toyworld.reading.picture_reader import read_scenes
from toyworld.reading.reading_records import Reading, SeenObject
from toyworld.scenes.palette import CARD
from toyworld.scenes.scene import Scenes

_SAME_PLACE_PX = 10.0
"""An object of another kind is matched to an object of the scene if the distance of their centres is at most this."""


@dataclass(frozen=True)
class ObjectAgreement:
    """Which attributes of one object of the scene were read correctly.

    None: not applicable, because the object was not found or its kind has no such attribute.
    """

    kind: bool
    colour: bool | None = None
    texture: bool | None = None  # shapes only
    variant: bool | None = None  # letter or pose, not for shapes
    cell: bool | None = None
    big: bool | None = None  # shapes only, as in captions


@dataclass(frozen=True)
class Agreement:
    """Which attributes of one scene were read correctly."""

    background: bool
    condition: bool
    style: bool
    count: bool
    objects: tuple[ObjectAgreement, ...]  # in the order of the scene's slots, without empty slots

    def attributes(self) -> Iterator[tuple[str, bool]]:
        """Yield (name, correct) for every applicable attribute of the scene and its objects."""
        for name in ("background", "condition", "style", "count"):
            yield name, getattr(self, name)
        for object_agreement in self.objects:
            for field in fields(object_agreement):
                correct = getattr(object_agreement, field.name)
                if correct is not None:
                    yield field.name, correct

    @property
    def all_correct(self) -> bool:
        """Whether no attribute is wrong and no object is missing."""
        return all(correct for _, correct in self.attributes())


ATTRIBUTES = ("background", "condition", "style", "count", *(f.name for f in fields(ObjectAgreement)))


def compare(reading: Reading, scenes: Scenes, n: int) -> Agreement:
    """Compare a reading with scene n. Objects are matched by kind, then by distance; positions are compared by cell."""
    slots = np.flatnonzero(scenes.present[n])
    matches = _match_objects(reading.objects, scenes, n, slots)
    return Agreement(
        background=reading.background == int(scenes.background[n]),
        condition=reading.condition == int(scenes.condition[n]),
        style=reading.style == int(scenes.style[n]),
        count=reading.count == len(slots),
        objects=tuple(_compare_object(matches.get(int(slot)), scenes, n, int(slot)) for slot in slots),
    )


def faithfulness(images: np.ndarray, scenes: Scenes) -> dict[str, float]:
    """Accuracy of the attributes of `scenes` in the readings of their images, uint8 `[N, 64, 64, 3]`, see `accuracy`.

    Raises ValueError unless there is one image per scene.
    """
    if len(images) != len(scenes):
        raise ValueError(f"want one image per scene, got {len(images)} images and {len(scenes)} scenes")
    return accuracy(read_scenes(images), scenes)


def accuracy(readings: Sequence[Reading], scenes: Scenes) -> dict[str, float]:
    """Accuracy of the attributes of `scenes` in one reading per scene.

    For every name in `ATTRIBUTES` the share of correct values in [0, 1] (nan without values), and under `n_<attribute>`
    the number of values. Attributes of an object are counted only if an object was matched to it. `everything` is the
    share of scenes without any error.
    """
    agreements = [compare(reading, scenes, n) for n, reading in enumerate(readings)]
    outcomes: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for agreement in agreements:
        for name, correct in agreement.attributes():
            outcomes[name].append(correct)
    outcomes["everything"] = [agreement.all_correct for agreement in agreements]
    shares = {name: float(np.mean(values)) if values else float("nan") for name, values in outcomes.items()}
    return shares | {f"n_{name}": float(len(values)) for name, values in outcomes.items()}


def drift(before: np.ndarray, after: np.ndarray, region: np.ndarray) -> np.ndarray:
    """[N] mean L1 in [0, 1] between uint8 images `[N, 64, 64, 3]` outside of the region, bool `[N, 64, 64]`.

    0 if the region covers the image.
    """
    return masked_mean(l1(before, after), ~region)


def _match_objects(objects: tuple[SeenObject, ...], scenes: Scenes, n: int, slots: np.ndarray) -> dict[int, SeenObject]:
    """Greedy matching of slots to objects: first the nearest of the same kind, then the nearest in the same place."""
    candidates = []
    for i, seen_object in enumerate(objects):
        for slot in slots:
            distance = float(np.hypot(seen_object.x - scenes.x[n, slot], seen_object.y - scenes.y[n, slot]))
            other_kind = seen_object.kind != int(scenes.kind[n, slot])
            if not other_kind or distance <= _SAME_PLACE_PX:
                candidates.append((other_kind, distance, int(slot), i))
    matches: dict[int, int] = {}
    for _, _, slot, i in sorted(candidates):
        if slot not in matches and i not in matches.values():
            matches[slot] = i
    return {slot: objects[i] for slot, i in matches.items()}


def _compare_object(seen_object: SeenObject | None, scenes: Scenes, n: int, slot: int) -> ObjectAgreement:
    if seen_object is None:
        return ObjectAgreement(kind=False)
    is_shape = int(scenes.kind[n, slot]) < CARD
    same = {
        name: getattr(seen_object, name) == getattr(scenes, name)[n, slot]
        for name in ("kind", "colour", "texture", "variant", "cell", "big")
    }
    return ObjectAgreement(
        kind=bool(same["kind"]),
        colour=bool(same["colour"]),
        texture=bool(same["texture"]) if is_shape else None,
        variant=None if is_shape else bool(same["variant"] and same["kind"]),
        cell=bool(same["cell"]),
        big=bool(same["big"]) if is_shape else None,
    )
