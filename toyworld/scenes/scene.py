"""Random scenes as arrays. Scene `i` is a pure function of the number `i`, so any process can generate any scene."""

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
"""Maximum number of objects in a scene."""
EMPTY = -1
"""Kind of an empty slot."""
PIXEL_ART = STYLES.index("pixel art")
HELD_OUT_EVERY = 10
"""Scene numbers that are multiples of this form the held-out split; all others form the training split."""


@dataclass(frozen=True)
class Scenes:
    """N scenes of zero to three objects. Object fields are `[N, 3]`, scene fields `[N]`; all are int16 except `number`.

    An empty slot has kind -1. Fields without a unit are indices into lists of `palette`.
    """

    number: np.ndarray  # int64, the seed of the scene
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
    tile_x: np.ndarray  # px, left edge of the window that is cut from the background tile
    tile_y: np.ndarray  # px, upper edge

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, rows: slice | np.ndarray) -> "Scenes":
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def present(self) -> np.ndarray:
        """[N, 3] bool: whether the slot has an object."""
        return self.kind >= 0

    @property
    def count(self) -> np.ndarray:
        """[N] number of objects."""
        return self.present.sum(1)

    @property
    def big(self) -> np.ndarray:
        """[N, 3] bool: whether the object is big."""
        return self.radius >= BIG_RADIUS

    def replace_fields(self, rows: np.ndarray, slots: np.ndarray, **values: np.ndarray | int) -> "Scenes":
        """Return a copy with the object fields named in `values` replaced at `(rows[k], slots[k])` for every k."""
        new_fields = {}
        for name, value in values.items():
            array = getattr(self, name).copy()
            array[rows, slots] = value
            new_fields[name] = array
        return replace(self, **new_fields)


def concat(parts: list[Scenes]) -> Scenes:
    """Concatenate along the scene axis."""
    return Scenes(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Scenes)})


def scene_numbers(split: str, start: int, n: int) -> np.ndarray:
    """[n] int64: the scene numbers at positions `start .. start + n - 1` of a split, 'train' or 'held_out'.

    The splits are disjoint. Raises ValueError for another split.
    """
    position = np.arange(start, start + n, dtype=np.int64)
    if split == "held_out":
        return position * HELD_OUT_EVERY
    if split == "train":
        return position + position // (HELD_OUT_EVERY - 1) + 1
    raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")


def uniform(number: np.ndarray, field: str) -> np.ndarray:
    """[N] float64, uniform in [0, 1): a hash of (scene number, field name).

    The hash is splitmix64 (Steele, Lea and Flood 2014). Only the first 8 bytes of the field name are used.
    """
    salt = np.array([int.from_bytes(field.encode()[:8].ljust(8, b"_"), "little")], np.uint64)
    z = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + _mix(salt)
    return (_mix(z) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _mix(z: np.ndarray) -> np.ndarray:
    """One step of splitmix64 on uint64 values."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def pick(number: np.ndarray, field: str, weights: np.ndarray) -> np.ndarray:
    """[N] int16 in 0..K-1, sampled in proportion to `weights`: `[K]`, or `[N, K]` with one row per scene."""
    cumulative = np.cumsum(np.broadcast_to(weights, (len(number), weights.shape[-1])).astype(np.float64), axis=1)
    u = uniform(number, field)[:, None] * cumulative[:, -1:]
    return (u >= cumulative).sum(1).astype(np.int16)


@lru_cache(maxsize=1)
def _layouts() -> list[np.ndarray]:
    """For one, two and three objects: all layouts that overlap by at most 1 px, `[L, count, (cell, big)]`."""
    tables: list[np.ndarray] = []
    for count in (1, 2, 3):
        cells = range(len(CELLS)) if count == 1 else range(4)
        layouts = []
        for order in permutations(cells, count):
            for sizes in np.ndindex(*(2,) * count):
                centres = CELL_CENTRES[list(order)].astype(float)
                extent = np.where(np.array(sizes) == 1, 13.5, 9.5)
                gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1) - extent[:, None] - extent[None]
                if np.all(gaps[np.triu_indices(count, 1)] >= -1.0):
                    layouts.append(np.stack([order, sizes], 1))
        tables.append(np.array(layouts, np.int16))
    return tables


def generate_scenes(number: np.ndarray) -> Scenes:
    """Generate the scenes with these numbers.

    Kinds are distinct within a scene, and colours contrast with the background. A scene has a weather condition or a
    style, never both.
    """
    n = len(number)
    number = np.asarray(number, np.int64)
    background = pick(number, "backgr", np.ones(len(BACKGROUNDS)))
    special = uniform(number, "special")
    style = np.where(special < 0.22, 1 + pick(number, "style", np.ones(len(STYLES) - 1)), 0)
    count = pick(number, "count", np.array([0.06, 0.42, 0.38, 0.14]))
    count = np.where(style == PIXEL_ART, np.minimum(count, 2), count)  # there is no layout of three big objects
    condition = np.where(special > 0.68, 1 + pick(number, "condit", np.ones(len(CONDITIONS) - 1)), 0)

    cell = np.full((n, SLOTS), EMPTY, np.int16)
    big = np.zeros((n, SLOTS), np.int16)
    for k, table in enumerate(_layouts(), 1):
        rows = np.flatnonzero(count == k)
        all_big = table[:, :, 1].all(1)  # the blocks of pixel art would hide small objects
        weights = np.where((style[rows] == PIXEL_ART)[:, None], all_big, True)
        layout = table[pick(number[rows], "layout", weights)]
        cell[rows, :k], big[rows, :k] = layout[:, :, 0], layout[:, :, 1]

    kind = _pick_kinds(number, (big == 1) & (style != PIXEL_ART)[:, None])
    slot = {name: np.zeros((n, SLOTS), np.int16) for name in ("colour", "texture", "variant", "radius", "x", "y")}
    for s in range(SLOTS):
        is_shape = kind[:, s] < CARD
        slot["colour"][:, s] = pick(number, f"colour{s}", ALLOWED_COLOURS[background])
        texture = pick(number, f"textur{s}", np.array([0.46, 0.18, 0.18, 0.18]))
        slot["texture"][:, s] = np.where(is_shape & (big[:, s] == 1) & (style != PIXEL_ART), texture, 0)
        n_variants = np.where(kind[:, s] == CARD, len(LETTERS), np.where(kind[:, s] == PERSON, len(POSES), 1))
        slot["variant"][:, s] = (uniform(number, f"varian{s}") * n_variants).astype(np.int16)
        step = (uniform(number, f"radius{s}") < 0.5).astype(np.int16)
        slot["radius"][:, s] = np.array(RADII, np.int16)[2 * big[:, s] + step]
        max_jitter = np.where(count == 1, 3, 1)  # px
        for axis, name in enumerate("xy"):
            jitter = (uniform(number, f"jitt{name}{s}") * (2 * max_jitter + 1)).astype(np.int16) - max_jitter
            centre = CELL_CENTRES[cell[:, s], axis] + jitter
            slot[name][:, s] = np.clip(centre, slot["radius"][:, s] + 1, 62 - slot["radius"][:, s])
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


def _pick_kinds(number: np.ndarray, has_room: np.ndarray) -> np.ndarray:
    """[N, 3] distinct kinds. Cards and people have fine detail and occur only where `has_room` (bool [N, 3])."""
    shapes = np.argsort(np.stack([uniform(number, f"shape{k}") for k in range(CARD)], 1), axis=1)
    kind = shapes[:, :SLOTS].astype(np.int16)
    specials = np.stack([CARD + (uniform(number, "cardman") < 0.5)] * 2, 1)  # card and person in random order
    specials[:, 1] = CARD + PERSON - specials[:, 0]
    n_used = np.zeros(len(number), np.int64)
    for s in range(SLOTS):
        is_special = has_room[:, s] & (uniform(number, f"rare{s}") < 0.34) & (n_used < 2)
        kind[is_special, s] = specials[is_special, n_used[is_special]]
        n_used += is_special
    return kind
