"""Stamps: every object of the toy world as a small precomputed window of coverage, shading and normals.

Shapes are signed distance fields (negative inside, px), antialiased over one pixel. The renderer only pastes windows,
so it is fast, and the objects of an image can be found by a finite search over stamps.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from toyworld.scenes.palette import LETTERS, POSES, RADII, SHAPES

HALF = 16
"""Pixels of a stamp on each side of its middle pixel."""
WINDOW = 2 * HALF + 1
"""Side length of a stamp, px. The object's centre is the middle pixel."""

# a stamp for every shape, every letter of a card and every pose of a person, in this order
N_STAMPS = len(SHAPES) + len(LETTERS) + len(POSES)
_LIGHT = np.array([-0.45, -0.6, 0.66], np.float32)  # direction to the light: upper left, towards the viewer

Points = list[tuple[float, float]]


def stamp_index(kind: np.ndarray, variant: np.ndarray) -> np.ndarray:
    """First index into the atlas for `kind` (position in KINDS) and `variant` (letter of a card, pose of a person)."""
    card = len(SHAPES)
    person = card + len(LETTERS)
    return np.where(kind < card, kind, np.where(kind == card, card + variant, person + variant))


@dataclass(frozen=True)
class Atlas:
    """All stamps at all radii. Arrays are float32, indexed `[stamp, position in RADII, y, x]`."""

    alpha: np.ndarray  # coverage in [0, 1]
    ink: np.ndarray  # coverage by the letter of a card, in [0, 1]
    shade: np.ndarray  # factor on the colour: a bevel that is lit from the upper left, and a darker rim
    flat: np.ndarray  # factor on the colour in cartoons: a black rim and no bevel
    bump: np.ndarray  # height of the bevel in [0, 1]
    normals: np.ndarray  # [..., 3], unit vectors, x right, y down, z to the viewer


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    """Build all stamps (about 0.1 s, once per process)."""
    fields = [[_object_field(i, float(r)) for r in RADII] for i in range(N_STAMPS)]
    sdf = np.array([[f[0] for f in row] for row in fields], np.float32)
    ink = np.array([[f[1] for f in row] for row in fields], np.float32)
    radius = np.array(RADII, np.float32)[None, :, None, None]
    t = np.clip(-sdf / (0.55 * radius), 0, 1)
    bump = np.sqrt(1 - (1 - t) ** 2)
    gy, gx = np.gradient(bump * 0.45 * radius, axis=(2, 3))
    normals = np.stack([-gx, -gy, np.ones_like(gx)], -1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    lit = np.clip(1 + 0.42 * (normals @ _LIGHT - _LIGHT[2]), 0.62, 1.22)
    rim = np.clip((sdf + 1.6) / 0.8, 0, 1)
    thick_rim = np.clip((sdf + 2.6) / 0.8, 0, 1)
    return Atlas(
        alpha=_coverage(sdf),
        ink=_coverage(ink),
        shade=(lit * (1 - 0.45 * rim)).astype(np.float32),
        flat=(1 - 0.95 * thick_rim).astype(np.float32),
        bump=bump.astype(np.float32),
        normals=normals.astype(np.float32),
    )


@lru_cache(maxsize=1)
def patterns() -> np.ndarray:
    """Weight of the second colour in every one of TEXTURES; float32 `[4, WINDOW, WINDOW]` in [0, 1]."""
    y, x = _grid()
    stripes = np.clip(0.5 + 1.6 * np.sin((x + y) * np.pi / 4.5), 0, 1)
    checks = np.clip(0.5 + 2.5 * np.sin((x + 2.5) * np.pi / 5) * np.sin((y + 2.5) * np.pi / 5), 0, 1)
    dots = _coverage(np.hypot((x + 3.5) % 7 - 3.5, (y + 3.5) % 7 - 3.5) - 2.1)
    return np.stack([np.zeros_like(x), stripes, checks, dots]).astype(np.float32)


def joints(pose: int) -> dict[str, tuple[float, float]]:
    """(x, y) of the stick figure's joints in units of its radius, y down, origin at the object's centre."""
    up, out, down = (0.62, -0.92), (0.80, -0.42), (0.45, 0.18)
    left, right = ((up, up), (out, out), (down, down), (down, up))[pose]
    return {
        "head": (0.0, -0.74),
        "neck": (0.0, -0.45),
        "left hand": (-left[0], left[1]),
        "right hand": right,
        "hip": (0.0, 0.18),
        "left foot": (-0.48, 0.95),
        "right foot": (0.48, 0.95),
    }


LIMBS = (
    ("neck", "left hand"),
    ("neck", "right hand"),
    ("neck", "hip"),
    ("hip", "left foot"),
    ("hip", "right foot"),
)
"""Pairs of joints that a limb connects."""

_STROKES: dict[str, list[Points]] = {  # polylines of the letters in the box [-1, 1] x [-1, 1], y down
    "A": [[(-0.9, 1), (0, -1), (0.9, 1)], [(-0.5, 0.3), (0.5, 0.3)]],
    "E": [[(0.8, -1), (-0.7, -1), (-0.7, 1), (0.8, 1)], [(-0.7, 0), (0.6, 0)]],
    "H": [[(-0.8, -1), (-0.8, 1)], [(0.8, -1), (0.8, 1)], [(-0.8, 0), (0.8, 0)]],
    "L": [[(-0.7, -1), (-0.7, 1), (0.8, 1)]],
    "O": [[(-0.4, -1), (0.4, -1), (0.8, -0.4), (0.8, 0.4), (0.4, 1), (-0.4, 1), (-0.8, 0.4), (-0.8, -0.4), (-0.4, -1)]],
    "T": [[(-0.9, -1), (0.9, -1)], [(0, -1), (0, 1)]],
    "X": [[(-0.8, -1), (0.8, 1)], [(0.8, -1), (-0.8, 1)]],
    "Z": [[(-0.8, -1), (0.8, -1), (-0.8, 1), (0.8, 1)]],
}


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates y and x of a window, origin at its middle pixel, `[WINDOW, WINDOW]` each."""
    axis = np.arange(-HALF, HALF + 1, dtype=np.float64)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def _coverage(sdf: np.ndarray) -> np.ndarray:
    """Antialiased coverage in [0, 1] of a signed distance field in px."""
    return np.clip(0.5 - sdf, 0, 1).astype(np.float32)


def segment_distance(x: np.ndarray, y: np.ndarray, a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
    """Distance from each point (x, y) to the line segment ab."""
    ex, ey = b[0] - a[0], b[1] - a[1]
    t = np.clip(((x - a[0]) * ex + (y - a[1]) * ey) / (ex * ex + ey * ey), 0, 1)
    return np.hypot(x - a[0] - t * ex, y - a[1] - t * ey)


def _polygon(points: Points) -> np.ndarray:
    """Signed distance to a simple polygon (even-odd rule), px."""
    y, x = _grid()
    distance = np.full_like(x, np.inf)
    inside = np.zeros_like(x, bool)
    for a, b in zip(points, points[1:] + points[:1], strict=True):
        distance = np.minimum(distance, segment_distance(x, y, a, b))
        if a[1] != b[1]:
            crosses = (y >= min(a[1], b[1])) & (y < max(a[1], b[1]))
            inside ^= crosses & (x < a[0] + (y - a[1]) * (b[0] - a[0]) / (b[1] - a[1]))
    return np.where(inside, -distance, distance)


def _strokes(lines: list[Points], half_width: float) -> np.ndarray:
    """Signed distance to polylines of a given half width, px."""
    y, x = _grid()
    pairs = [pair for line in lines for pair in pairwise(line)]
    return np.min([segment_distance(x, y, a, b) for a, b in pairs], axis=0) - half_width


def _scaled(points: Points, sx: float, sy: float) -> Points:
    return [(px * sx, py * sy) for px, py in points]


def _object_field(stamp: int, r: float) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances to the object and to the letter on it (+inf if there is none), px; `r` is the radius."""
    no_ink = np.full((WINDOW, WINDOW), np.inf)
    if stamp < len(SHAPES):
        return _shape_field(SHAPES[stamp], r), no_ink
    if stamp < len(SHAPES) + len(LETTERS):
        letter = LETTERS[stamp - len(SHAPES)]
        card = _polygon(_scaled([(-1, -1), (1, -1), (1, 1), (-1, 1)], 0.80 * r, 0.96 * r))
        lines = [_scaled(line, 0.44 * r, 0.56 * r) for line in _STROKES[letter]]
        return card, _strokes(lines, 0.125 * r)
    joint = joints(stamp - len(SHAPES) - len(LETTERS))
    y, x = _grid()
    head = np.hypot(x - joint["head"][0] * r, y - joint["head"][1] * r) - 0.25 * r
    body = _strokes([_scaled([joint[a], joint[b]], r, r) for a, b in LIMBS], 0.14 * r)
    return np.minimum(head, body), no_ink


def _shape_field(name: str, r: float) -> np.ndarray:
    """Signed distance to the shape of this name and radius, px."""
    y, x = _grid()
    if name == "circle":
        return np.hypot(x, y) - 0.94 * r
    if name == "ring":
        return np.abs(np.hypot(x, y) - 0.70 * r) - 0.28 * r
    star_angles = 2 * np.pi * np.arange(10) / 10 - np.pi / 2
    star_radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.46)
    heart_angles = 2 * np.pi * np.arange(48) / 48
    outlines: dict[str, Points] = {
        "square": [(-0.83, -0.83), (0.83, -0.83), (0.83, 0.83), (-0.83, 0.83)],
        "triangle": [(0.0, -1.0), (1.02, 0.86), (-1.02, 0.86)],
        "diamond": [(0.0, -1.12), (0.80, 0.0), (0.0, 1.12), (-0.80, 0.0)],
        "star": [(float(s * np.cos(a)), float(s * np.sin(a)) + 0.06) for s, a in zip(star_radii, star_angles, strict=True)],
        "heart": [
            (
                float(np.sin(a) ** 3) * 1.04,
                -float(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a)) / 15.5 - 0.10,
            )
            for a in heart_angles
        ],
        "cross": [
            *((-0.34, -1.0), (0.34, -1.0), (0.34, -0.34), (1.0, -0.34), (1.0, 0.34), (0.34, 0.34)),
            *((0.34, 1.0), (-0.34, 1.0), (-0.34, 0.34), (-1.0, 0.34), (-1.0, -0.34), (-0.34, -0.34)),
        ],
    }
    return _polygon(_scaled(outlines[name], r, r))
