"""The renderer's pictures and truths agree with the scenes and with each other."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from toyworld.scenes import backgrounds, render, stamps
from toyworld.scenes.palette import BACKGROUND_RGB, COLOURS, CONDITIONS, RADII, RGB, SHAPES, STYLES
from toyworld.scenes.scene import EMPTY, Scenes, numbers, scenes


@pytest.fixture(scope="module")
def some() -> Scenes:
    return scenes(numbers("held_out", 0, 200))


@pytest.fixture(scope="module")
def known(some: Scenes) -> render.Truth:
    return render.truth(some)


def plain(some: Scenes) -> Scenes:
    zeros = np.zeros(len(some), np.int16)
    return replace(some, condition=zeros, style=zeros)


def test_batching_changes_nothing(some: Scenes, known: render.Truth) -> None:
    np.testing.assert_array_equal(render.images(some), known.images)
    one_by_one = np.concatenate([render.images(some[i : i + 1]) for i in range(70, 80)])
    np.testing.assert_array_equal(one_by_one, known.images[70:80])


def test_masks_boxes_and_depth_tell_of_the_same_object(some: Scenes, known: render.Truth) -> None:
    for n, slot in np.argwhere(some.present):
        mask = known.masks[n, slot]
        x0, y0, x1, y1 = known.boxes[n, slot].astype(int)
        assert mask.sum() > 50
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert all(edge.any() for edge in (mask[y0, x0:x1], mask[y1 - 1, x0:x1], mask[y0:y1, x0], mask[y0:y1, x1 - 1]))
        assert abs((x0 + x1 - 1) / 2 - some.x[n, slot]) <= 3
        assert known.disparity[n][mask].min() > known.disparity[n][known.owner[n] < 0].max()
    assert not known.boxes[~some.present].any()
    np.testing.assert_allclose(np.linalg.norm(known.normals, axis=-1), 1, atol=1e-5)
    assert known.normals[..., 2].min() > 0


def test_a_plain_circle_has_its_colour_inside_and_the_ground_outside() -> None:
    base = plain(scenes(np.arange(len(COLOURS))))
    first = np.arange(len(COLOURS))
    kind = np.full_like(base.kind, EMPTY)
    kind[:, 0] = SHAPES.index("circle")
    zeros = np.zeros(len(first), np.int16)
    some = replace(base, kind=kind, background=zeros + 4)
    some = some.edited(first, np.zeros(len(first), int), colour=first, texture=0, radius=13, x=30, y=34)
    known = render.truth(some)
    middle = known.images[:, 32:37, 28:33].mean((1, 2)) / 255
    np.testing.assert_allclose(middle, RGB, atol=0.02)
    corner = known.images[:, :8, :8].mean((1, 2)) / 255
    np.testing.assert_allclose(corner, np.broadcast_to(BACKGROUND_RGB[4], corner.shape), atol=0.12)
    area = known.masks[:, 0].sum((1, 2))
    np.testing.assert_allclose(area, np.pi * (0.94 * 13) ** 2, rtol=0.03)


def test_emptying_a_slot_shows_the_same_ground(some: Scenes) -> None:
    clear = plain(some)
    gone = replace(clear, kind=np.full_like(clear.kind, EMPTY))
    known, empty = render.truth(clear), render.images(gone)
    far = np.stack([distance_transform_edt(owner < 0) > 2.5 for owner in known.owner])  # antialiased rims are nearer
    assert (known.images[far] == empty[far]).all()
    assert (known.images[known.owner >= 0] != empty[known.owner >= 0]).any(-1).mean() > 0.99


def test_weather_and_style_change_the_whole_picture(some: Scenes) -> None:
    clear = plain(some)[:20]
    before = render.images(clear).astype(float)
    for name, count in (("condition", len(CONDITIONS)), ("style", len(STYLES))):
        for value in range(1, count):
            after = render.images(replace(clear, **{name: np.full(20, value, np.int16)})).astype(float)
            changed = np.abs(after - before).max(-1) > 4
            assert changed.mean((1, 2)).min() > 0.08, (name, value)
            assert np.abs(after - before).mean() / 255 > 0.03, (name, value)


def test_stamps_are_closed_form_where_it_is_known() -> None:
    atlas = stamps.atlas()
    for r, radius in enumerate(RADII):
        square = atlas.alpha[SHAPES.index("square"), r].sum()
        np.testing.assert_allclose(square, (2 * 0.83 * radius) ** 2, rtol=0.02)
        ring = atlas.alpha[SHAPES.index("ring"), r].sum()
        np.testing.assert_allclose(ring, np.pi * radius**2 * (0.98**2 - 0.42**2), rtol=0.03)
        triangle = atlas.alpha[SHAPES.index("triangle"), r].sum()
        np.testing.assert_allclose(triangle, 1.02 * 1.86 * radius**2, rtol=0.02)
    assert len(atlas.alpha) == stamps.N_STAMPS == 20
    pairs = np.array([[np.abs(a - b).sum() for b in atlas.alpha[:8, 3]] for a in atlas.alpha[:8, 3]])
    assert pairs[~np.eye(8, dtype=bool)].min() > 60, "two shapes look alike"


def test_tiles_are_periodic() -> None:
    tiles = backgrounds.backgrounds()
    np.testing.assert_array_equal(tiles[:, : backgrounds.TILE - 64, :64], tiles[:, : backgrounds.TILE - 64, backgrounds.TILE :])
    assert tiles.min() >= 0
    assert tiles.max() <= 1
    distance = np.abs(tiles.mean((1, 2))[:, None] - tiles.mean((1, 2))[None]).sum(-1)
    assert distance[~np.eye(8, dtype=bool)].min() > 0.15, "two backgrounds have the same colour"
