"""Scenes that a wrong result of an edit shows: without objects, or with other attributes than those that were requested."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from toyworld.scenes import render
from toyworld.scenes.palette import (
    BACKGROUNDS,
    BIG_RADIUS,
    CARD,
    COLOURS,
    CONDITIONS,
    LETTERS,
    POSES,
    RADII,
    SHAPES,
    TEXTURES,
)
from toyworld.scenes.scene import EMPTY, PIXEL_ART, SLOTS, Scenes

MOVED_PX = 10
"""Distance of a misplaced object, px: a result is wrong that is more than half as far from the right place."""
N_DETAILS = max(map(len, (TEXTURES, LETTERS, POSES)))


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


def wrong_scenes(source: Scenes, free_slots: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Scenes]]:
    """Wrong scenes: without objects, with other light, weather or background, or with one object removed, changed or moved.

    Yields (rows, scenes): `rows` of `source` are changed, the other rows are unchanged. `free_slots` [N]: of objects that are
    not changed alone.
    """
    rows = np.arange(len(source))
    yield rows, _without_objects(source)
    for k in range(1, len(CONDITIONS)):
        yield rows, replace(source, condition=(source.condition + k) % len(CONDITIONS))
    for k in range(1, len(BACKGROUNDS)):
        yield rows, replace(source, background=(source.background + k) % len(BACKGROUNDS))
    for slot in range(SLOTS):
        present = rows[source.present[:, slot] & (True if free_slots is None else free_slots != slot)]
        for scenes in _with_wrong_object(source[present], slot):
            yield present, scenes


def _with_wrong_object(scenes: Scenes, slot: int) -> Iterator[Scenes]:
    """The scenes with the object in this slot removed, of another shape, colour, texture, letter, pose or size, or moved."""
    rows, slots = np.arange(len(scenes)), np.full(len(scenes), slot)
    kind, colour, radius, x, y = (getattr(scenes, name)[:, slot] for name in ("kind", "colour", "radius", "x", "y"))
    yield scenes.replace_fields(rows, slots, kind=EMPTY)
    for k in range(1, len(SHAPES)):
        yield scenes.replace_fields(rows, slots, kind=(kind + k) % len(SHAPES), variant=0)
    for k in range(1, len(COLOURS)):
        yield scenes.replace_fields(rows, slots, colour=(colour + k) % len(COLOURS))
    for k in range(1, N_DETAILS):
        yield with_other_details(scenes, slots, k)
    yield scenes.replace_fields(rows, slots, radius=np.where(radius < BIG_RADIUS, RADII[-1], RADII[0]))
    for dx, dy in ((MOVED_PX, 0), (-MOVED_PX, 0), (0, MOVED_PX), (0, -MOVED_PX)):
        yield scenes.replace_fields(rows, slots, x=x + dx, y=y + dy)


def _without_objects(source: Scenes) -> Scenes:
    """The same scenes without objects. Their maps are blank, and nearer to the exact maps than the images are."""
    rows, slots = np.nonzero(source.kind != EMPTY)
    return source.replace_fields(rows, slots, kind=EMPTY)


def _draw_images(_rows: np.ndarray, scenes: Scenes) -> np.ndarray:
    return render.images(scenes)


def render_wrong(
    target: Scenes,
    exact: np.ndarray,
    draw: Callable[[np.ndarray, Scenes], np.ndarray] = _draw_images,
    free_slots: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """The results of `wrong_scenes`, uint8 [N, 64, 64, 3] each: `draw` gets the rows that differ, and their scenes.

    Without `draw` they are images of the scenes.
    """
    for rows, scenes in wrong_scenes(target, free_slots):
        wrong = exact.copy()
        wrong[rows] = draw(rows, scenes)
        yield wrong
