"""Lists of edits: memory is bounded, and results do not depend on how the list is split."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from emuedit import EditError, Editor, EditSettings
from emuedit.editing import api
from emuedit.editor import any_size
from emuedit.editor.sampling import MAX_PIXELS_PER_BATCH, EditSampler
from emuedit.editor.sampling_options import Edited, SamplingOptions

SETTINGS = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0, change_threshold=0.0, resolution=64, seed=5)
SIZES = [(16, 20), (16, 20), (90, 60), (16, 20), (90, 60), (24, 20), (90, 60), (16, 20)]
"""(H, W) in px; the large ones are edited at 80 x 52 px."""


@pytest.fixture
def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def edit(editor: Editor, images: list[np.ndarray]) -> list[np.ndarray]:
    return editor.edit(images, [f"edit {n}" for n in range(len(images))], ["local", "style"] * (len(images) // 2))


@pytest.mark.slow
def test_a_split_list_gives_the_same_images_within_the_bound(
    make_sampler: Callable[..., EditSampler], images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, pixels_at_once = 2 * 16 * 20, list[int]()
    encode = EditSampler._denoise

    def record(sampler: EditSampler, conditions: Any, *rest: Any) -> Any:
        n, _, h, w = conditions.c_I.shape
        pixels_at_once.append(n * h * w * sampler.parts.factor**2)
        return encode(sampler, conditions, *rest)

    monkeypatch.setattr(EditSampler, "_denoise", record)
    together = edit(Editor(make_sampler(), None, SETTINGS), images)
    assert max(pixels_at_once) == 3 * 80 * 52
    pixels_at_once.clear()
    split = edit(Editor(make_sampler(), None, SETTINGS, max_pixels_per_batch=bound), images)
    assert sorted(pixels_at_once) == [24 * 20, bound, bound, *[80 * 52] * 3], "one image enters, whatever its size"
    for before, after in zip(together, split, strict=True):
        assert np.abs(before.astype(int) - after).max() <= 1


@pytest.mark.slow
def test_large_images_are_not_all_floats_at_once(
    make_sampler: Callable[..., EditSampler], images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_images: list[int] = []
    edit_any_size = any_size.edit_any_size

    def record(sampler: EditSampler, batch: torch.Tensor, *rest: Any, **options: Any) -> Edited:
        n_images.append(len(batch))
        return edit_any_size(sampler, batch, *rest, **options)

    together = edit(Editor(make_sampler(), None, SETTINGS), images)
    monkeypatch.setattr(any_size, "edit_any_size", record)
    monkeypatch.setattr(api, "MAX_PIXELS", 2 * 90 * 60)
    split = edit(Editor(make_sampler(), None, SETTINGS), images)
    assert n_images == [4, 1, 2, 1]
    for before, after in zip(together, split, strict=True):
        assert np.abs(before.astype(int) - after).max() <= 1


@pytest.mark.slow
def test_the_bound_has_a_default_and_is_checked(make_sampler: Callable[..., EditSampler]) -> None:
    sampler = make_sampler()
    assert Editor(sampler, None, SETTINGS).sampler.max_pixels_per_batch == MAX_PIXELS_PER_BATCH
    assert Editor(sampler, None, SETTINGS, max_pixels_per_batch=99).sampler.max_pixels_per_batch == 99
    with pytest.raises(EditError, match="want max_pixels_per_batch of at least 1, got 0"):
        Editor(sampler, None, SETTINGS, max_pixels_per_batch=0)


@pytest.mark.slow
def test_loading_passes_the_bound_on(editor_folder: Callable[[str], Any]) -> None:
    assert Editor.load(editor_folder("toy"), "cpu", max_pixels_per_batch=99).sampler.max_pixels_per_batch == 99


def test_a_batch_has_the_options_of_its_own_images() -> None:
    latents = torch.arange(6.0).reshape(3, 2, 1, 1)
    options = SamplingOptions(("a", "b", "c"), latents, lambda step, t, z_t: z_t)
    part = options.rows([2, 0])
    assert list(part.negative_prompts) == ["c", "a"]
    assert part.latents is not None
    assert torch.equal(part.latents, latents[[2, 0]])
    assert part.after_step is options.after_step
    assert SamplingOptions().rows([1]) == SamplingOptions()
