"""Scenes that a wrong result of an edit shows: without objects, or with other attributes than those that were requested."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from toyworld.scenes.palette import BACKGROUNDS, CARD, COLOURS, CONDITIONS, LETTERS, POSES, SHAPES, TEXTURES
from toyworld.scenes.scene import EMPTY, PIXEL_ART, SLOTS, Scenes

NIGHT = CONDITIONS.index("night")


def with_other_details(scenes: Scenes, slots: np.ndarray, k: int) -> Scenes:
    """The k-th other texture of a shape, letter of a card or pose of a person; without the object where there is none.

    Small objects and pixel art have no textures.
    """
    rows = np.arange(len(scenes))
    kind, texture, variant = (getattr(scenes, name)[rows, slots] for name in ("kind", "texture", "variant"))
    is_shape = kind < CARD
    n_values = np.select([is_shape, kind == CARD], [len(TEXTURES), len(LETTERS)], len(POSES))
    exists = (k < n_values) & (~is_shape | (scenes.big[rows, slots] & (scenes.style != PIXEL_ART)))
    return scenes.replace_fields(
        rows, slots,
        kind=np.where(exists, kind, EMPTY),
        texture=np.where(is_shape, (texture + k) % n_values, texture),
        variant=np.where(is_shape, variant, (variant + k) % n_values),
    )  # fmt: skip


def wrong_scenes(source: Scenes) -> Iterator[tuple[np.ndarray, Scenes]]:
    """Wrong scenes: without objects, with other light or background, or with one object removed or changed.

    Yields (rows, scenes): `rows` of `source` are changed, the other rows are unchanged.
    """
    rows = np.arange(len(source))
    yield rows, _without_objects(source)
    yield rows, replace(source, condition=np.where(source.condition == NIGHT, 0, NIGHT).astype(np.int16))
    for k in range(1, len(BACKGROUNDS)):
        yield rows, replace(source, background=(source.background + k) % len(BACKGROUNDS))
    for slot in range(SLOTS):
        present = rows[source.present[:, slot]]
        scenes = source[present]
        positions, slots = np.arange(len(present)), np.full(len(present), slot)
        yield present, scenes.replace_fields(positions, slots, kind=EMPTY)
        for k in range(1, len(SHAPES)):
            kind = (scenes.kind[:, slot] + k) % len(SHAPES)
            yield present, scenes.replace_fields(positions, slots, kind=kind, variant=0)
        for k in range(1, len(COLOURS)):
            yield present, scenes.replace_fields(positions, slots, colour=(scenes.colour[:, slot] + k) % len(COLOURS))


def _without_objects(source: Scenes) -> Scenes:
    """The same scenes without objects. Their maps are blank, and nearer to the exact maps than the images are."""
    rows, slots = np.nonzero(source.kind != EMPTY)
    return source.replace_fields(rows, slots, kind=EMPTY)
