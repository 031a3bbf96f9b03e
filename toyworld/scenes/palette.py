"""Attribute values of the toy world and their colours. Scenes store indices into these lists: keep their order."""

import numpy as np

SIZE = 64
"""Height and width of an image, px."""

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "ring", "cross")
KINDS = (*SHAPES, "card", "person")
CARD, PERSON = KINDS.index("card"), KINDS.index("person")
LETTERS = ("A", "E", "H", "L", "O", "T", "X", "Z")
POSES = ("arms up", "arms out", "arms down", "waving")
TEXTURES = ("plain", "striped", "checkered", "dotted")
RADII = (9, 10, 13, 14)
"""Radii of the objects, px: the first two are small, the last two are big."""
BIG_RADIUS = 12
"""Objects of at least this radius are big, px."""
CELLS = ("left", "right", "top", "bottom", "centre")
CELL_CENTRES = np.array([(16, 32), (48, 32), (32, 16), (32, 48), (32, 32)], np.int16)
"""[5, 2] nominal (x, y) of an object in each cell, px."""
BACKGROUNDS = ("grass", "sand", "sky", "brick", "snow", "water", "wood", "stone")
CONDITIONS = ("clear", "night", "fog", "rain", "snowfall", "sunset")
STYLES = ("photo", "pencil sketch", "pixel art", "cartoon", "watercolour")

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RGB = np.array(
    [
        (0.86, 0.10, 0.12),
        (0.99, 0.52, 0.06),
        (0.99, 0.88, 0.14),
        (0.10, 0.60, 0.18),
        (0.12, 0.28, 0.88),
        (0.52, 0.16, 0.72),
        (0.99, 0.52, 0.76),
        (0.45, 0.25, 0.11),
        (0.09, 0.09, 0.10),
        (0.97, 0.97, 0.97),
    ],
    np.float32,
)
"""[10, 3] of COLOURS."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def luma(rgb: np.ndarray) -> np.ndarray:
    """Luma (ITU-R BT.601) of RGB colours `[..., 3]` in [0, 1]; `[...]`."""
    return rgb @ _LUMA


SECOND_RGB = np.where(luma(RGB)[:, None] > 0.5, RGB * 0.30, RGB * 0.20 + 0.80).astype(np.float32)
"""[10, 3] second colour of stripes, checks, dots and letters: light on dark objects, dark on light ones."""

BACKGROUND_RGB = np.array(
    [
        (0.38, 0.68, 0.26),
        (0.90, 0.80, 0.56),
        (0.52, 0.76, 0.96),
        (0.72, 0.36, 0.28),
        (0.91, 0.94, 0.98),
        (0.16, 0.46, 0.70),
        (0.64, 0.43, 0.24),
        (0.56, 0.56, 0.58),
    ],
    np.float32,
)
"""[8, 3] base colour of every background."""

_LOW_CONTRAST_COLOURS = {
    "grass": {"green"},
    "sand": {"yellow", "white"},
    "sky": {"white", "blue"},
    "brick": {"red", "brown", "orange"},
    "snow": {"white"},
    "water": {"blue"},
    "wood": {"brown", "orange"},
    "stone": set(),
}
ALLOWED_COLOURS = np.array([[c not in _LOW_CONTRAST_COLOURS[b] for c in COLOURS] for b in BACKGROUNDS])
"""[8, 10] bool: whether an object of this colour is clearly visible on this background."""

BOX_RGB = np.array((1.0, 0.0, 1.0), np.float32)
"""Colour of the box in the detect task: magenta, which no object has."""
MASK_RGB = np.array((0.0, 1.0, 1.0), np.float32)
"""Colour of the mask in the segment task: cyan, which no object has."""
CLASS_RGB = np.array(
    [
        (0.90, 0.10, 0.29),
        (0.24, 0.71, 0.29),
        (1.00, 0.88, 0.10),
        (0.26, 0.39, 0.85),
        (0.96, 0.51, 0.19),
        (0.57, 0.12, 0.71),
        (0.27, 0.94, 0.94),
        (0.94, 0.20, 0.90),
        (0.98, 0.98, 0.98),
        (0.98, 0.75, 0.83),
    ],
    np.float32,
)
"""[10, 3] colour of every kind of object in a segmentation map."""
BACKGROUND_CLASS_RGB = np.array(
    [
        (0.00, 0.35, 0.10),
        (0.45, 0.40, 0.20),
        (0.20, 0.35, 0.55),
        (0.40, 0.10, 0.10),
        (0.55, 0.60, 0.65),
        (0.00, 0.15, 0.40),
        (0.30, 0.15, 0.00),
        (0.25, 0.25, 0.25),
    ],
    np.float32,
)
"""[8, 3] colour of every background in a segmentation map, darker than those of the objects."""
