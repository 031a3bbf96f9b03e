"""The targets that need no network: boxes, masks, colour filters, sketches, and maps from given depth and classes."""

import numpy as np
import pytest
import yaml

from emuedit.annotators import derived_maps, drawing
from emuedit.annotators.photo_annotators import MASK_RGB, annotate
from tests.annotators.annotation import call
from tests.repository import ROOT


def test_a_box_is_drawn_just_outside_the_object(images: np.ndarray) -> None:
    boxes = np.array([[16.4, 10, 36, 29.5], [0, 0, 0, 0]], np.float32)
    targets, valid = call(annotate, "detect", images, boxes_px=boxes)
    assert valid.tolist() == [True, False]
    line = (targets[0] != images[0]).any(-1)
    expected = np.zeros((40, 56), bool)
    expected[8:32, 14:38] = True
    expected[10:30, 16:36] = False
    np.testing.assert_array_equal(line, expected)
    assert (targets[0][line] == (255, 0, 255)).all()
    np.testing.assert_array_equal(targets[1], images[1])
    whole_image = np.array([[0, 0, 56, 40]] * 2, np.float32)
    assert not call(annotate, "detect", images, boxes_px=whole_image)[1].any()  # no room around the boxes


def test_a_mask_is_filled_with_its_colour(images: np.ndarray) -> None:
    masks = np.zeros((2, 40, 56), bool)
    masks[0, 5:9, 7:20] = True
    targets, valid = call(annotate, "segment", images, masks=masks)
    assert valid.tolist() == [True, False]
    np.testing.assert_array_equal(targets, np.where(masks[..., None], MASK_RGB, images))


def test_colour_filters_do_what_their_names_say() -> None:
    images = np.random.default_rng(0).integers(60, 180, (1, 12, 20, 3)).astype(np.uint8)

    def apply(name: str) -> np.ndarray:
        targets, valid = call(annotate, "color", images, words=[name])
        assert valid.all()
        return targets.astype(float)

    p, std = images.astype(float), images.std()
    np.testing.assert_allclose(apply("brighten"), 255 - 0.75 * (255 - p), atol=0.51)
    np.testing.assert_allclose(apply("darken"), 0.6 * p, atol=0.51)
    np.testing.assert_array_equal(apply("hue"), p[..., [2, 0, 1]])
    assert apply("less contrast").std() < std < apply("more contrast").std()
    assert apply("desaturate").std(-1).mean() < p.std(-1).mean() < apply("saturate").std(-1).mean()
    assert apply("blur").std() < std < apply("sharpen").std()


def test_a_filter_that_changes_nothing_makes_no_pair() -> None:
    """In grey photographs, "make it more colourful" was taught as "change nothing"."""
    grey = np.random.default_rng(0).integers(60, 180, (12, 20, 1)).astype(np.uint8).repeat(3, -1)
    scan = np.clip(grey + np.random.default_rng(1).integers(-1, 2, grey.shape), 0, 255).astype(np.uint8)
    smooth = np.zeros_like(grey) + 90
    catalogue = np.zeros_like(grey) + 255
    catalogue[4:7, 8:12] = np.random.default_rng(2).integers(0, 256, (3, 4, 3))  # 5 % of the image
    names = ["saturate", "desaturate", "hue", "brighten", "blur", "darken"]
    valid = {
        kind: call(annotate, "color", np.stack([image] * len(names)), words=names)[1]
        for kind, image in {"grey": grey, "scan": scan, "smooth": smooth, "catalogue": catalogue}.items()
    }
    assert valid["grey"].tolist() == valid["scan"].tolist() == [False, False, False, True, True, True]
    assert valid["smooth"].tolist() == [False, False, False, True, False, True]
    assert valid["catalogue"].all(), "a small subject on white changes visibly"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blur", "sharpen"])
def test_filters_of_detail_are_as_visible_in_large_images(name: str) -> None:
    """With a blur of 1 px at every size, the target of an image of 512 px was nearly the image."""
    stripes = np.zeros((1, 128, 128, 3), np.uint8) + 64
    stripes[:, :, np.arange(128) // 8 % 2 == 1] = 192

    def change_at(scale: int) -> float:
        images = stripes.repeat(scale, 1).repeat(scale, 2)
        targets, valid = call(annotate, "color", images, words=[name])
        assert valid.all()
        return float(np.abs(targets.astype(float) - images).mean())

    assert change_at(8) == pytest.approx(change_at(4), rel=0.1)
    assert change_at(4) > 7


def test_a_sketch_of_a_large_image_has_the_lines_of_a_small_one() -> None:
    ramp = np.clip((np.arange(512) - 250) / 10, 0, 1)  # an edge of 10 px
    small = np.broadcast_to((40 * ramp)[None, :, None], (512, 512, 3))[None].astype(np.uint8)
    large = small.repeat(2, 1).repeat(2, 2)
    lines = [255 - call(annotate, "sketch", images)[0][0, ..., 0].astype(float) for images in (small, large)]
    reduced = lines[1].reshape(512, 2, 512, 2).mean((1, 3))
    assert reduced.sum() == pytest.approx(lines[0].sum(), rel=0.1)


def test_the_colour_filters_are_the_choices_of_the_prompt(images: np.ndarray) -> None:
    prompt = yaml.safe_load((ROOT / "emuedit/prompts/color.yaml").read_text())["color"]
    assert set(prompt["choices"]) == set(drawing.COLOUR_FILTERS)
    targets, valid = call(annotate, "color", images, words=["darken", "sing"])
    assert valid.tolist() == [True, False]
    np.testing.assert_array_equal(targets[1], images[1])


def test_a_plane_has_one_normal() -> None:
    y, x = np.mgrid[0:30, 0:40] / 40  # in units of the longer side
    depth = np.stack([0.5 * x + 0.25 * y, np.zeros((30, 40)), 1 - x])
    normals = 2 * derived_maps.normals(depth) - 1
    # nearer to the right: the normal points left; nearer below: it points up
    expected = np.array([[-0.5, 0.25, 1], [0, 0, 1], [1, 0, 1]])
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(normals, np.broadcast_to(expected[:, None, None], normals.shape), atol=1e-6)


def test_a_sketch_is_the_outline_of_a_square(images: np.ndarray) -> None:
    targets, valid = call(annotate, "sketch", images)
    assert valid.tolist() == [True, False]  # uniform grey has no edge
    dark = targets[0].max(-1) < 128
    assert dark[10:30, 15:17].all()  # both sides of the left edge
    assert dark[9:11, 16:36].all()
    assert (targets[0, 15:25, 21:31] == 255).all()  # no edge inside
    assert (targets[0, :5] == 255).all()
    faint = np.full((1, 20, 20, 3), 100, np.uint8)
    faint[:, :, 10:] += 16  # a step of 1/16: the darkness of a step is its height times the gain
    assert 255 - call(annotate, "sketch", faint)[0].min() == pytest.approx(16 * derived_maps.EDGE_GAIN, rel=0.15)


def test_class_colours_are_those_of_pascal_voc() -> None:
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (224, 224, 192)]
    assert derived_maps.class_colours(np.array([0, 1, 2, 3, 4, 255])).tolist() == [list(rgb) for rgb in expected]
    assert len(np.unique(derived_maps.class_colours(np.arange(256)), axis=0)) == 256
