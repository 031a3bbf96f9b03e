from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from emuedit.editing.multi_turn import edit_turns
from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import SamplingOptions
from emuedit.editor.settings import EditSettings
from emuedit.models.image_tensors import from_uint8

INSTRUCTIONS, TASKS = ["make it red", "add a star", "a ring"], ["local", "add", "detect"]
SETTINGS = EditSettings(
    steps=1, image_guidance_scale=1.0, guidance_scale=1.0, composite=0, border_px=0, against_reconstruction=0, seed=10
)


LEVEL = 2 / 255
"""The step between two bytes."""


@pytest.fixture
def image() -> Tensor:
    return from_uint8(np.random.default_rng(1).integers(10, 240, (16, 16, 3), np.uint8))


@pytest.fixture
def sampler(make_sampler: Callable[..., EditSampler], monkeypatch: pytest.MonkeyPatch) -> EditSampler:
    """An editor whose outputs differ by one level from the input, and in the upper left corner a lot."""
    sampler, encoded = make_sampler(), []
    encode = sampler.parts.encode

    def decode(z: Tensor) -> Tensor:
        after = encoded[-1] + LEVEL  # far below the change threshold
        after[..., :4, :4] = -encoded[-1][..., :4, :4].sign()
        return after

    monkeypatch.setattr(sampler.parts, "encode", lambda images: (encoded.append(images.clone()), encode(images))[1])
    monkeypatch.setattr(sampler.parts, "decode", decode)
    return sampler


@pytest.mark.slow
def test_each_turn_edits_the_result_of_the_turn_before(
    sampler: EditSampler, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    sample = sampler.sample
    monkeypatch.setattr(sampler, "sample", lambda *arguments: (calls.append(arguments), sample(*arguments))[1])
    results = [turn.images for turn in edit_turns(sampler, image, INSTRUCTIONS, TASKS, SETTINGS)]
    assert [(instructions, tasks) for _, instructions, tasks, *_ in calls] == [
        ([instruction], [task]) for instruction, task in zip(INSTRUCTIONS, TASKS, strict=True)
    ]
    assert [seeds for *_, seeds, _ in calls] == [[10], [11], [12]]
    for before, (images, *_) in zip([image, *results], calls, strict=False):
        assert torch.equal(images, before)


@pytest.mark.slow
def test_unchanged_pixels_are_kept_bit_for_bit(sampler: EditSampler, image: Tensor) -> None:
    results = [turn.images for turn in edit_turns(sampler, image, INSTRUCTIONS, TASKS, SETTINGS)]
    assert len(results) == 3
    for result in results:
        assert torch.equal(result[..., 10:, 10:], image[..., 10:, 10:])
        assert not torch.equal(result[..., :4, :4], image[..., :4, :4])


@pytest.mark.slow
def test_a_threshold_of_zero_keeps_no_pixel(sampler: EditSampler, image: Tensor) -> None:
    *_, last = edit_turns(sampler, image, INSTRUCTIONS, TASKS, SETTINGS.with_changes({"change_threshold": 0.0}))
    torch.testing.assert_close(last.images[..., 10:, 10:], image[..., 10:, 10:] + 3 * LEVEL)


@pytest.mark.slow
def test_progress_is_reported_for_every_step_of_every_turn(sampler: EditSampler, image: Tensor) -> None:
    reported: list[int] = []
    options = SamplingOptions(report=reported.append)
    turns = edit_turns(sampler, image, INSTRUCTIONS, TASKS, SETTINGS.with_changes({"steps": 2}), options)
    for number, _ in enumerate(turns, start=1):
        assert reported == [1] * 2 * number, "a turn is returned before the next one begins"
    assert len(reported) == 6


def test_wrong_numbers_of_pictures_and_tasks_are_errors(sampler: EditSampler, image: Tensor) -> None:
    with pytest.raises(ValueError, match="3 instructions, 2 tasks"):
        next(edit_turns(sampler, image, INSTRUCTIONS, TASKS[:2], SETTINGS))
    with pytest.raises(ValueError, match=r"want one image .* got 2 images"):
        next(edit_turns(sampler, image.repeat(2, 1, 1, 1), INSTRUCTIONS, TASKS, SETTINGS))
