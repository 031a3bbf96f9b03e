"""Tasks that another thread removes or replaces while images are edited, and the reconstructions of a sample."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import SamplingOptions
from emuedit.editor.settings import EditSettings
from tests.editor.test_task_adapter import random_adapter

MakeSampler = Callable[..., EditSampler]
SETTINGS = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0)
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.slow
def test_all_batches_have_the_tasks_from_when_the_first_began(make_sampler: MakeSampler) -> None:
    sampler = make_sampler()
    sampler.max_pixels_per_batch = 1
    sampler.add_task("new", torch.ones(sampler.net.table.d_v), random_adapter(sampler), 0.5)
    arguments: Any = (IMAGES, ["a", "b"], ["new", "new"], SETTINGS, [0, 1])
    want = [edit.image for _, edit in sampler.raw_edits(*arguments)]
    edits = sampler.raw_edits(*arguments)
    got = [next(edits)[1]]
    sampler.remove_task("new")
    got.append(next(edits)[1])
    for expected, edit in zip(want, got, strict=True):
        assert torch.equal(edit.image, expected)
        assert edit.learned_thresholds == {"new": 0.5}


@pytest.mark.slow
def test_a_task_that_a_sampler_adds_is_the_same_in_all_calls_of_its_pipeline(make_sampler: MakeSampler) -> None:
    pipe = make_sampler().parts.pipeline
    pipe.set_progress_bar_config(disable=True)
    sampler, v = pipe.sampler(), torch.ones(pipe.task_embedding.d_v)
    sampler.add_task("new", v, random_adapter(sampler), 0.5)
    sampler.add_task("plain", v)
    call: Any = {"prompt": "a", "image": IMAGES[:1] / 2 + 0.5, "output_type": "pt", "change_threshold": 0.03}
    call |= {"num_inference_steps": 1, "image_guidance_scale": 1.0, "guidance_scale": 1.0}
    got, other = (pipe(task=task, generator=torch.Generator().manual_seed(0), **call).images * 2 - 1 for task in ("new", "plain"))
    want = sampler.sample(IMAGES[:1], ["a"], ["new"], SETTINGS, [0]).images
    torch.testing.assert_close(got, want)
    assert not torch.equal(got, other), "which has the same embedding without an adapter"
    pipe.sampler().remove_task("new")
    assert not sampler.adapters, "the pipeline has one state for all samplers"
    assert not sampler.change_thresholds


@pytest.mark.slow
def test_the_parts_of_a_task_are_read_while_no_other_thread_can_replace_it(
    make_sampler: MakeSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, were_locked = make_sampler(), list[bool]()
    rows = sampler.net.table.rows

    def record(tasks: Any) -> torch.Tensor:
        with ThreadPoolExecutor(1) as pool:
            were_locked.append(not pool.submit(sampler.lock.acquire, False).result())
        return rows(tasks)

    monkeypatch.setattr(sampler.net.table, "rows", record)
    sampler.sample(IMAGES, ["a", "b"], ["local", "add"], SETTINGS, [0, 1])
    assert were_locked == [True]


@pytest.mark.slow
@pytest.mark.parametrize("change_threshold", [0.0, 0.03])
def test_reconstructions_are_returned_if_asked_for(change_threshold: float, make_sampler: MakeSampler) -> None:
    sampler = make_sampler()
    settings = SETTINGS.with_changes({"change_threshold": change_threshold})
    arguments: Any = (IMAGES, ["a", "b"], ["local", "color"])
    options = SamplingOptions(keep_reconstructions=True)
    kept = sampler.sample(*arguments, settings, [0, 1], options).reconstructions
    with torch.inference_mode():
        torch.testing.assert_close(kept, sampler.parts.decode(sampler.parts.encode(IMAGES)))
    assert sampler.sample(*arguments, settings, [0, 1]).reconstructions is None
    paper = settings.with_changes({"against_reconstruction": 0})
    with_reconstructions, without = (sampler.sample(*arguments, paper, [0, 1], chosen) for chosen in (options, SamplingOptions()))
    torch.testing.assert_close(with_reconstructions.reconstructions, kept)
    assert torch.equal(with_reconstructions.images, without.images), "the change is still measured from the image"
