"""Scenes as arrays. Scene `i` is a pure function of the number `i`, so any worker can make any of them."""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import permutations

import numpy as np

from toyworld.scenes.palette import (
    ALLOWED_COLOURS,
    BACKGROUNDS,
    BIG_RADIUS,
    CARD,
    CELL_CENTRES,
    CELLS,
    CONDITIONS,
    LETTERS,
    PERSON,
    POSES,
    RADII,
    STYLES,
)

SLOTS = 3
EMPTY = -1
PIXEL_ART = STYLES.index("pixel art")
HELD_OUT_EVERY = 10
"""Every tenth scene number belongs to the held-out split, for good."""


@dataclass(frozen=True)
class Scenes:
    """N scenes of none to three objects. Object fields are `[N, 3]`, scene fields `[N]`; int16 but for `number`.

    An empty slot has kind -1. All other fields are indices into the lists of `palette`, or px.
    """

    number: np.ndarray  # int64, what the scene was made from
    kind: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    variant: np.ndarray  # letter of a card, pose of a person, else 0
    cell: np.ndarray
    radius: np.ndarray  # px, one of RADII
    x: np.ndarray  # px
    y: np.ndarray  # px
    background: np.ndarray
    condition: np.ndarray
    style: np.ndarray
    tile_x: np.ndarray  # px, where the background's noise starts
    tile_y: np.ndarray  # px

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, rows: slice | np.ndarray) -> "Scenes":
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def present(self) -> np.ndarray:
        """[N, 3] bool: is there an object in the slot?"""
        return self.kind >= 0

    @property
    def count(self) -> np.ndarray:
        """[N] how many objects."""
        return self.present.sum(1)

    @property
    def big(self) -> np.ndarray:
        """[N, 3] bool."""
        return self.radius >= BIG_RADIUS

    def edited(self, rows: np.ndarray, slots: np.ndarray, **values: np.ndarray | int) -> "Scenes":
        """A copy in which the object fields named in `values` are set at `(rows[k], slots[k])`."""
        changed = {}
        for name, value in values.items():
            array = getattr(self, name).copy()
            array[rows, slots] = value
            changed[name] = array
        return replace(self, **changed)


def concat(parts: list[Scenes]) -> Scenes:
    """One after the other."""
    return Scenes(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Scenes)})


def numbers(split: str, start: int, n: int) -> np.ndarray:
    """The scene numbers `start .. start + n` of a split: 'train' or 'held_out'. The two never meet."""
    at = np.arange(start, start + n, dtype=np.int64)
    if split == "held_out":
        return at * HELD_OUT_EVERY
    if split == "train":
        return at + at // (HELD_OUT_EVERY - 1) + 1
    raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")


def uniform(number: np.ndarray, field: str) -> np.ndarray:
    """[N] float64 in [0, 1): a hash of (scene number, field), splitmix64 (Steele et al. 2014)."""
    salt = np.array([int.from_bytes(field.encode()[:8].ljust(8, b"_"), "little")], np.uint64)
    z = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + _mix(salt)
    return (_mix(z) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def pick(number: np.ndarray, field: str, weights: np.ndarray) -> np.ndarray:
    """[N] int16 drawn with `weights`, `[K]` or one row a scene `[N, K]`."""
    edges = np.cumsum(np.broadcast_to(weights, (len(number), weights.shape[-1])).astype(np.float64), axis=1)
    u = uniform(number, field)[:, None] * edges[:, -1:]
    return (u >= edges).sum(1).astype(np.int16)


@lru_cache(maxsize=1)
def _layouts() -> list[np.ndarray]:
    """For one, two and three objects: every way to place big and small ones apart, `[L, count, (cell, big)]`."""
    found: list[np.ndarray] = []
    for count in (1, 2, 3):
        cells = range(len(CELLS)) if count == 1 else range(4)
        rows = []
        for order in permutations(cells, count):
            for sizes in np.ndindex(*(2,) * count):
                at = CELL_CENTRES[list(order)].astype(float)
                reach = np.where(np.array(sizes) == 1, 13.5, 9.5)
                gaps = np.linalg.norm(at[:, None] - at[None], axis=-1) - reach[:, None] - reach[None]
                if np.all(gaps[np.triu_indices(count, 1)] >= -1.0):
                    rows.append(np.stack([order, sizes], 1))
        found.append(np.array(rows, np.int16))
    return found


def scenes(number: np.ndarray) -> Scenes:
    """Draw the scenes with these numbers. Kinds are distinct within a scene, colours are visible on the background."""
    n = len(number)
    number = np.asarray(number, np.int64)
    background = pick(number, "backgr", np.ones(len(BACKGROUNDS)))
    special = uniform(number, "special")
    style = np.where(special < 0.22, 1 + pick(number, "style", np.ones(len(STYLES) - 1)), 0)
    count = pick(number, "count", np.array([0.06, 0.42, 0.38, 0.14]))
    count = np.where(style == PIXEL_ART, np.minimum(count, 2), count)  # no three big ones fit
    condition = np.where(special > 0.68, 1 + pick(number, "condit", np.ones(len(CONDITIONS) - 1)), 0)

    cell = np.full((n, SLOTS), EMPTY, np.int16)
    big = np.zeros((n, SLOTS), np.int16)
    for k, table in enumerate(_layouts(), 1):
        rows = np.flatnonzero(count == k)
        roomy = table[:, :, 1].all(1)  # blocks of pixel art hide small things
        weights = np.where((style[rows] == PIXEL_ART)[:, None], roomy, True)
        chosen = table[pick(number[rows], "layout", weights)]
        cell[rows, :k], big[rows, :k] = chosen[:, :, 0], chosen[:, :, 1]

    kind = _kinds(number, (big == 1) & (style != PIXEL_ART)[:, None])
    slot = {name: np.zeros((n, SLOTS), np.int16) for name in ("colour", "texture", "variant", "radius", "x", "y")}
    for s in range(SLOTS):
        is_shape = kind[:, s] < CARD
        slot["colour"][:, s] = pick(number, f"colour{s}", ALLOWED_COLOURS[background])
        texture = pick(number, f"textur{s}", np.array([0.46, 0.18, 0.18, 0.18]))
        slot["texture"][:, s] = np.where(is_shape & (big[:, s] == 1) & (style != PIXEL_ART), texture, 0)
        variants = np.where(kind[:, s] == CARD, len(LETTERS), np.where(kind[:, s] == PERSON, len(POSES), 1))
        slot["variant"][:, s] = (uniform(number, f"varian{s}") * variants).astype(np.int16)
        step = (uniform(number, f"radius{s}") < 0.5).astype(np.int16)
        slot["radius"][:, s] = np.array(RADII, np.int16)[2 * big[:, s] + step]
        reach = np.where(count == 1, 3, 1)
        for axis, name in enumerate("xy"):
            jitter = (uniform(number, f"jitt{name}{s}") * (2 * reach + 1)).astype(np.int16) - reach
            at = CELL_CENTRES[cell[:, s], axis] + jitter
            slot[name][:, s] = np.clip(at, slot["radius"][:, s] + 1, 62 - slot["radius"][:, s])
    kind[np.arange(SLOTS)[None] >= count[:, None]] = EMPTY
    return Scenes(
        number=number,
        kind=kind,
        cell=cell,
        background=background,
        condition=condition.astype(np.int16),
        style=style.astype(np.int16),
        tile_x=(uniform(number, "tile_x") * 128).astype(np.int16),
        tile_y=(uniform(number, "tile_y") * 128).astype(np.int16),
        **slot,
    )


def _kinds(number: np.ndarray, roomy: np.ndarray) -> np.ndarray:
    """[N, 3] distinct kinds; cards and people only where there is room for letters and limbs."""
    shapes = np.argsort(np.stack([uniform(number, f"shape{k}") for k in range(CARD)], 1), axis=1)
    kind = shapes[:, :SLOTS].astype(np.int16)
    specials = np.stack([CARD + (uniform(number, "cardman") < 0.5)] * 2, 1)
    specials[:, 1] = CARD + PERSON - specials[:, 0]
    used = np.zeros(len(number), np.int64)
    for s in range(SLOTS):
        takes = roomy[:, s] & (uniform(number, f"rare{s}") < 0.34) & (used < 2)
        kind[takes, s] = specials[takes, used[takes]]
        used += takes
    return kind
