"""The renderer's pictures and ground truth agree with the scenes and with each other."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from toyworld.scenes import backgrounds, render, stamps
from toyworld.scenes.palette import BACKGROUND_RGB, COLOURS, CONDITIONS, RADII, RGB, SHAPES, STYLES
from toyworld.scenes.scene import EMPTY, Scenes, generate_scenes, scene_numbers


@pytest.fixture(scope="module")
def held_out() -> Scenes:
    return generate_scenes(scene_numbers("held_out", 0, 200))


@pytest.fixture(scope="module")
def truth(held_out: Scenes) -> render.GroundTruth:
    return render.truth(held_out)


def without_weather_and_style(scenes: Scenes) -> Scenes:
    zeros = np.zeros(len(scenes), np.int16)
    return replace(scenes, condition=zeros, style=zeros)


@pytest.mark.slow
def test_batching_changes_nothing(held_out: Scenes, truth: render.GroundTruth) -> None:
    np.testing.assert_array_equal(render.images(held_out), truth.images)
    single_images = np.concatenate([render.images(held_out[i : i + 1]) for i in range(70, 80)])
    np.testing.assert_array_equal(single_images, truth.images[70:80])


@pytest.mark.slow
def test_masks_boxes_and_disparity_agree(held_out: Scenes, truth: render.GroundTruth) -> None:
    for n, slot in np.argwhere(held_out.present):
        mask = truth.masks[n, slot]
        x0, y0, x1, y1 = truth.boxes[n, slot].astype(int)
        assert mask.sum() > 50
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert all(edge.any() for edge in (mask[y0, x0:x1], mask[y1 - 1, x0:x1], mask[y0:y1, x0], mask[y0:y1, x1 - 1]))
        assert abs((x0 + x1 - 1) / 2 - held_out.x[n, slot]) <= 3
        assert truth.disparity[n][mask].min() > truth.disparity[n][truth.owner[n] < 0].max()
    assert not truth.boxes[~held_out.present].any()
    np.testing.assert_allclose(np.linalg.norm(truth.normals, axis=-1), 1, atol=1e-5)
    assert truth.normals[..., 2].min() > 0


def test_a_plain_circle_has_its_colour_inside_and_the_background_outside() -> None:
    base = without_weather_and_style(generate_scenes(np.arange(len(COLOURS))))
    rows = np.arange(len(COLOURS))
    kind = np.full_like(base.kind, EMPTY)
    kind[:, 0] = SHAPES.index("circle")
    zeros = np.zeros(len(rows), np.int16)
    circles = replace(base, kind=kind, background=zeros + 4)
    circles = circles.replace_fields(rows, np.zeros(len(rows), int), colour=rows, texture=0, radius=13, x=30, y=34)
    truth = render.truth(circles)
    middle = truth.images[:, 32:37, 28:33].mean((1, 2)) / 255
    np.testing.assert_allclose(middle, RGB, atol=0.02)
    corner = truth.images[:, :8, :8].mean((1, 2)) / 255
    np.testing.assert_allclose(corner, np.broadcast_to(BACKGROUND_RGB[4], corner.shape), atol=0.12)
    area = truth.masks[:, 0].sum((1, 2))
    np.testing.assert_allclose(area, np.pi * (0.94 * 13) ** 2, rtol=0.03)


@pytest.mark.slow
def test_removing_all_objects_keeps_the_background(held_out: Scenes) -> None:
    clear = without_weather_and_style(held_out)
    empty = replace(clear, kind=np.full_like(clear.kind, EMPTY))
    truth, empty_images = render.truth(clear), render.images(empty)
    far = np.stack([distance_transform_edt(owner < 0) > 2.5 for owner in truth.owner])  # beyond the antialiased rims
    assert (truth.images[far] == empty_images[far]).all()
    assert (truth.images[truth.owner >= 0] != empty_images[truth.owner >= 0]).any(-1).mean() > 0.99


@pytest.mark.slow
def test_weather_and_style_change_the_whole_picture(held_out: Scenes) -> None:
    clear = without_weather_and_style(held_out)[:20]
    before = render.images(clear).astype(float)
    for name, count in (("condition", len(CONDITIONS)), ("style", len(STYLES))):
        for value in range(1, count):
            after = render.images(replace(clear, **{name: np.full(20, value, np.int16)})).astype(float)
            changed = np.abs(after - before).max(-1) > 4
            assert changed.mean((1, 2)).min() > 0.08, (name, value)
            assert np.abs(after - before).mean() / 255 > 0.03, (name, value)


def test_stamp_areas_have_their_closed_form() -> None:
    atlas = stamps.atlas()
    for r, radius in enumerate(RADII):
        square = atlas.alpha[SHAPES.index("square"), r].sum()
        np.testing.assert_allclose(square, (2 * 0.83 * radius) ** 2, rtol=0.02)
        ring = atlas.alpha[SHAPES.index("ring"), r].sum()
        np.testing.assert_allclose(ring, np.pi * radius**2 * (0.98**2 - 0.42**2), rtol=0.03)
        triangle = atlas.alpha[SHAPES.index("triangle"), r].sum()
        np.testing.assert_allclose(triangle, 1.02 * 1.86 * radius**2, rtol=0.02)
    assert len(atlas.alpha) == stamps.N_STAMPS == 20
    differences = np.array([[np.abs(a - b).sum() for b in atlas.alpha[:8, 3]] for a in atlas.alpha[:8, 3]])
    assert differences[~np.eye(8, dtype=bool)].min() > 60, "two shapes are too similar"


def test_tiles_are_periodic() -> None:
    tiles, period = backgrounds.background_tiles(), backgrounds.TILE_PX
    np.testing.assert_array_equal(tiles[:, : period - 64, :64], tiles[:, : period - 64, period:])
    assert tiles.min() >= 0
    assert tiles.max() <= 1
    distance = np.abs(tiles.mean((1, 2))[:, None] - tiles.mean((1, 2))[None]).sum(-1)
    assert distance[~np.eye(8, dtype=bool)].min() > 0.15, "two backgrounds have nearly the same colour"
