import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emuedit.models.text_to_image import grid_of
from emuedit.training.batches.aspect_buckets import AspectBucketError, AspectBuckets
from tests.editor.tiny_pipelines import build_base_model


def make_model(side: int, levels: int, factor: int = 8) -> Any:
    """What buckets ask of a base model."""
    config = SimpleNamespace(block_out_channels=(8,) * levels)
    return SimpleNamespace(unet=SimpleNamespace(config=config), factor=factor, size=(side, side))


def test_buckets_of_stable_diffusion_at_512_px() -> None:
    model = make_model(512, levels=4)
    assert grid_of(model) == 64
    assert AspectBuckets.for_base_model(model).sizes == ((384, 640), (448, 576), (512, 512), (576, 448), (640, 384))
    assert AspectBuckets.for_base_model(model, 256, 1.0).sizes == ((256, 256),)
    assert AspectBuckets.for_base_model(model, 1024, 1.2).sizes == ((960, 1088), (1024, 1024), (1088, 960))


def test_all_buckets_at_1024_px_are_among_those_that_sdxl_was_trained_at() -> None:
    """The list in appendix I of arXiv 2307.01952."""
    published = {
        512: (2048, 1984, 1920, 1856), 576: (1792, 1728, 1664), 640: (1600, 1536), 704: (1472, 1408, 1344), 768: (1344, 1280),
        832: (1216, 1152), 896: (1152, 1088), 960: (1088, 1024), 1024: (1024,),
    }  # fmt: skip
    sizes = AspectBuckets.around(1024, 4.0, 64).sizes
    assert len(sizes) == 33
    for size in sizes:
        assert max(size) in published[min(size)]


@pytest.mark.slow
@given(grid=st.sampled_from([2, 8, 64]), sides=st.integers(1, 24), ratio=st.floats(1, 4))
def test_every_bucket_is_on_the_grid_within_the_area_and_cannot_be_widened(grid: int, sides: int, ratio: float) -> None:
    resolution = grid * sides
    sizes = AspectBuckets.around(resolution, ratio, grid).sizes
    assert (resolution, resolution) in sizes
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert (width, height) in sizes
        assert height % grid == width % grid == 0
        assert height * width <= resolution**2 < max(height, width) * (min(height, width) + grid)
        assert max(height, width) <= ratio * min(height, width)


@pytest.mark.slow
@given(height=st.integers(20, 3000), width=st.integers(20, 3000))
def test_a_picture_goes_to_the_nearest_aspect_ratio_and_covers_its_bucket(height: int, width: int) -> None:
    buckets = AspectBuckets.around(512, 2.0, 64)
    placement = buckets.place((height, width))
    distances = {size: abs(math.log(height / width * size[1] / size[0])) for size in buckets.sizes}
    assert distances[placement.size] <= min(distances.values()) + 1e-12
    room = np.subtract(placement.resized, placement.size)
    assert (room >= 0).all()
    assert room.min() == 0, "no more is cut off than the aspect ratio asks for"
    assert abs(2 * placement.top - room[0]) <= 1
    assert abs(2 * placement.left - room[1]) <= 1
    assert placement.left + placement.mirrored_left == room[1]
    scale = max(placement.size[0] / height, placement.size[1] / width)
    np.testing.assert_allclose(placement.resized, (height * scale, width * scale), atol=0.51)
    assert placement.is_enlarged == (scale > 1 and placement.resized != (height, width))


@pytest.mark.parametrize(
    ("size", "bucket"), [((600, 400), (640, 384)), ((480, 640), (448, 576)), ((333, 333), (512, 512)), ((300, 4000), (384, 640))]
)
def test_portrait_landscape_and_square(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert AspectBuckets.around(512, 2.0, 64).place(size).size == bucket


@pytest.mark.parametrize("size", AspectBuckets.around(64, 2.0, 16).sizes)
def test_a_picture_that_has_the_size_of_a_bucket_stays_as_it_is(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    placement = AspectBuckets.around(64, 2.0, 16).place(size)
    assert (placement.resized, placement.top, placement.left, placement.size) == (size, 0, 0, size)
    assert np.shares_memory(placement.apply(pixels), pixels)


def test_a_picture_that_only_needs_a_crop_is_not_resampled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 70, 3), np.uint8)
    placement = AspectBuckets.around(64, 2.0, 16).place((64, 70))
    np.testing.assert_array_equal(placement.apply(pixels), pixels[:, 3:67])


def test_scaling_down_does_not_alias_and_the_centre_is_kept() -> None:
    stripes = np.zeros((256, 400, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the bucket can show
    placement = AspectBuckets.around(64, 1.0, 16).place((256, 400))
    assert (placement.original, placement.resized, placement.top, placement.left) == ((256, 400), (64, 100), 0, 18)
    small = placement.apply(stripes)
    assert small.shape == (64, 64, 3)
    assert small.min() > 100
    assert small.max() < 155
    spot = np.zeros((256, 400, 3), np.uint8)
    spot[128:132, 200:204] = 255
    small = placement.apply(spot)[:, :, 0]
    assert np.unravel_index(small.argmax(), small.shape) == (32, 32)


def test_without_buckets_every_size_is_its_own() -> None:
    placement = AspectBuckets.unchanged().place((48, 33))
    assert (placement.resized, placement.size, placement.is_enlarged) == ((48, 33), (48, 33), False)


def test_the_resolution_of_the_base_model_is_the_default() -> None:
    assert AspectBuckets.for_base_model(build_base_model("toy"), None, 1.0).sizes == ((16, 16),)


def test_a_resolution_off_the_grid_and_an_impossible_ratio_are_refused() -> None:
    with pytest.raises(AspectBucketError, match=r"want a resolution that is a multiple of 64 px.*got 500; use 512"):
        AspectBuckets.for_base_model(make_model(512, levels=4), 500)
    with pytest.raises(AspectBucketError, match=r"max_aspect_ratio >= 1.*got 0.5"):
        AspectBuckets.around(512, 0.5, 64)
