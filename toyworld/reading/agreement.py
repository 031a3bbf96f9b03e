"""Is what a scene says there to be seen? And did the rest stay as it was?"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from toyworld.edits.exact_judge import l1, mean_over
from toyworld.reading.picture_reader import read
from toyworld.reading.reading_records import Reading, Seen
from toyworld.scenes.palette import CARD
from toyworld.scenes.scene import Scenes

_SAME_PLACE_PX = 10.0
"""An object of another kind this near to where one should be is taken for it, drawn wrongly."""


@dataclass(frozen=True)
class ObjectAgreement:
    """Of one object of the scene. None: cannot be seen, because the object is missing or has no such attribute."""

    kind: bool
    colour: bool | None = None
    texture: bool | None = None  # shapes only
    variant: bool | None = None  # letter or pose
    cell: bool | None = None
    big: bool | None = None  # shapes only, as in captions


@dataclass(frozen=True)
class Agreement:
    """Of one picture."""

    background: bool
    condition: bool
    style: bool
    count: bool
    objects: tuple[ObjectAgreement, ...]  # in the order of the scene's slots, empty ones left out

    def named(self) -> Iterator[tuple[str, bool]]:
        """Every attribute that can be seen, with its name."""
        for name in ("background", "condition", "style", "count"):
            yield name, getattr(self, name)
        for one in self.objects:
            for field in fields(one):
                right = getattr(one, field.name)
                if right is not None:
                    yield field.name, right

    @property
    def everything(self) -> bool:
        """Nothing is wrong or missing."""
        return all(right for _, right in self.named())


ATTRIBUTES = ("background", "condition", "style", "count", *(f.name for f in fields(ObjectAgreement)))


def compare(reading: Reading, scenes: Scenes, n: int) -> Agreement:
    """What of scene n was read. Objects are matched by kind, then by place; exact places are free within a cell."""
    slots = np.flatnonzero(scenes.present[n])
    partner = _matched(reading.objects, scenes, n, slots)
    return Agreement(
        background=reading.background == int(scenes.background[n]),
        condition=reading.condition == int(scenes.condition[n]),
        style=reading.style == int(scenes.style[n]),
        count=reading.count == len(slots),
        objects=tuple(_object(partner.get(int(slot)), scenes, n, int(slot)) for slot in slots),
    )


def faithfulness(images: np.ndarray, scenes: Scenes) -> dict[str, float]:
    """Share of what the captions of scenes say that is seen in uint8 `[N, 64, 64, 3]`.

    Per attribute (see `ATTRIBUTES`) a share in [0, 1], nan if never seen, and under `n_<attribute>` of how many; attributes of
    objects are counted where an object was found for the scene's. `everything`: share of pictures with nothing wrong or missing.
    """
    if len(images) != len(scenes):
        raise ValueError(f"one picture a scene: got {len(images)} pictures and {len(scenes)} scenes")
    found = [compare(reading, scenes, n) for n, reading in enumerate(read(images))]
    votes: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for one in found:
        for name, right in one.named():
            votes[name].append(right)
    votes["everything"] = [one.everything for one in found]
    shares = {name: float(np.mean(v)) if v else float("nan") for name, v in votes.items()}
    return shares | {f"n_{name}": float(len(v)) for name, v in votes.items()}


def drift(before: np.ndarray, after: np.ndarray, region: np.ndarray) -> np.ndarray:
    """[N] mean L1 in [0, 1] between uint8 `[N, 64, 64, 3]` outside of the bool `[N, 64, 64]` region; 0 if nothing is outside."""
    return mean_over(l1(before, after), ~region)


def _matched(objects: tuple[Seen, ...], scenes: Scenes, n: int, slots: np.ndarray) -> dict[int, Seen]:
    """Slot to object: nearest of the same kind first, then whatever stands in its place."""
    pairs = []
    for i, seen in enumerate(objects):
        for slot in slots:
            away = float(np.hypot(seen.x - scenes.x[n, slot], seen.y - scenes.y[n, slot]))
            other = seen.kind != int(scenes.kind[n, slot])
            if not other or away <= _SAME_PLACE_PX:
                pairs.append((other, away, int(slot), i))
    partner: dict[int, int] = {}
    for _, _, slot, i in sorted(pairs):
        if slot not in partner and i not in partner.values():
            partner[slot] = i
    return {slot: objects[i] for slot, i in partner.items()}


def _object(seen: Seen | None, scenes: Scenes, n: int, slot: int) -> ObjectAgreement:
    if seen is None:
        return ObjectAgreement(kind=False)
    shape = int(scenes.kind[n, slot]) < CARD
    same = {
        name: getattr(seen, name) == getattr(scenes, name)[n, slot]
        for name in ("kind", "colour", "texture", "variant", "cell", "big")
    }
    return ObjectAgreement(
        kind=bool(same["kind"]),
        colour=bool(same["colour"]),
        texture=bool(same["texture"]) if shape else None,
        variant=None if shape else bool(same["variant"] and same["kind"]),
        cell=bool(same["cell"]),
        big=bool(same["big"]) if shape else None,
    )
