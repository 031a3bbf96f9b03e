"""What edits cost: evaluations of the network in each step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler
from torch import Tensor

from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import NonFiniteEditError
from emuedit.editor.unet import Prediction
from tests.editor.test_sampling import INSTRUCTIONS, SETTINGS, TASKS, UNGUIDED, pictures

MakeSampler = Callable[..., EditSampler]


def count_rows(sampler: EditSampler, patch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of rows of every evaluation of the network from now on."""
    batch_sizes: list[int] = []
    forward = sampler.net.forward

    def forward_and_count(z_t: Tensor, *rest: Any) -> Prediction:
        batch_sizes.append(len(z_t))
        return forward(z_t, *rest)

    patch.setattr(sampler.net, "forward", forward_and_count)
    return batch_sizes


@pytest.mark.slow
@pytest.mark.parametrize(("s_I", "s_T", "n_terms"), [(1.0, 1.0, 1), (1.0, 3.0, 2), (1.8, 1.8, 2), (1.3, 3.0, 3), (1.3, 1.0, 3)])
def test_a_term_of_guidance_without_weight_costs_nothing_and_has_no_effect(
    s_I: float, s_T: float, n_terms: int, make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, images = make_sampler(), pictures(2, 16, 16)
    batch_sizes = count_rows(sampler, monkeypatch)
    settings = SETTINGS.with_changes({"steps": 2, "image_guidance_scale": s_I, "guidance_scale": s_T})
    got = sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], settings, [3, 4]).images
    assert batch_sizes == [2 * n_terms] * 2
    almost = settings.with_changes({"image_guidance_scale": s_I + 1e-6, "guidance_scale": s_T + 2e-6})
    near = sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], almost, [3, 4]).images
    torch.testing.assert_close(got, near, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_steps_outside_of_the_guidance_interval_need_one_evaluation(
    make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, images = make_sampler(), pictures(2, 16, 16)
    batch_sizes = count_rows(sampler, monkeypatch)
    interval = SETTINGS.with_changes({"steps": 4, "guidance_from": 0.25, "guidance_to": 0.75})
    sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], interval, [3, 4])
    assert batch_sizes == [2, 6, 6, 2]
    nowhere = sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], interval.with_changes({"guidance_to": 0.25}), [3, 4]).images
    assert torch.equal(nowhere, sampler.sample(images, INSTRUCTIONS[:2], TASKS[:2], UNGUIDED, [3, 4]).images)


@pytest.mark.slow
def test_every_step_of_a_scheduler_that_makes_one_more_is_guided(
    make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PNDM, the scheduler of SD1.5, visits its second timestep twice."""
    sampler = make_sampler("sd15")
    sampler.parts.scheduler = PNDMScheduler.from_config(sampler.parts.scheduler.config, skip_prk_steps=True)
    batch_sizes = count_rows(sampler, monkeypatch)
    sampler.sample(pictures(1, 16, 16), INSTRUCTIONS[:1], TASKS[:1], SETTINGS.with_changes({"steps": 4}), [3])
    assert batch_sizes == [3] * 5


@pytest.mark.slow
def test_the_padding_counts_as_pixels_of_a_batch(make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make_sampler("sd15")
    side = sampler.grid_px + 1
    sampler.max_pixels_per_batch = 2 * (2 * sampler.grid_px) ** 2
    batch_sizes = count_rows(sampler, monkeypatch)
    sampler.sample(pictures(3, side, side), INSTRUCTIONS, TASKS, UNGUIDED.with_changes({"steps": 1}), [3, 4, 5])
    assert batch_sizes == [2, 1]


@pytest.mark.slow
def test_an_edit_that_is_not_finite_names_the_number_format(make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make_sampler()
    monkeypatch.setattr(type(sampler.parts), "decode", lambda parts, z: torch.full((len(z), 3, 16, 16), float("nan")))
    with pytest.raises(NonFiniteEditError, match="want finite values from the editor, got NaN or infinity in float32; load it"):
        sampler.sample(pictures(1, 16, 16), INSTRUCTIONS[:1], TASKS[:1], UNGUIDED, [3])
