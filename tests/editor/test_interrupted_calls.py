"""The denoising steps of a call of the pipeline: number, progress bar, a callback that ends them; and calls in parallel."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.editor.edit_pipeline import EmuEditPipeline
from tests.editor.test_task_adapter import random_adapter

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
CALL: dict[str, Any] = {
    "prompt": "make it red", "image": PIXELS, "task": "local", "num_inference_steps": 3, "output_type": "np",
    "image_guidance_scale": 1.0, "guidance_scale": 1.0,
}  # fmt: skip


@pytest.fixture
def pipe(editor_folder: Callable[[str], Path]) -> EmuEditPipeline:
    pipeline = EmuEditPipeline.from_pretrained(editor_folder("toy"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_a_callback_ends_the_call_after_its_step_and_the_next_one_runs_all_steps(pipe: EmuEditPipeline) -> None:
    steps: list[int] = []

    def interrupt(pipeline: EmuEditPipeline, step: int, *_: Any) -> dict[str, Any]:
        steps.append(step)
        pipeline._interrupt = step == 1
        return {}

    assert pipe(**CALL, callback_on_step_end=interrupt).images.shape == (1, 16, 20, 3)
    assert steps == [0, 1]
    assert pipe.interrupt
    assert pipe.num_timesteps == 3
    pipe(**CALL, callback_on_step_end=lambda _, step, *rest: steps.append(step) or {})
    assert steps == [0, 1, 0, 1, 2]
    assert not pipe.interrupt


@pytest.mark.slow
def test_images_that_are_not_begun_when_a_callback_ends_the_call_are_returned_unedited(pipe: EmuEditPipeline) -> None:
    sampler, steps = pipe.sampler(), list[int]()
    sampler.add_task("new", torch.ones(pipe.task_embedding.d_v), random_adapter(sampler))

    def interrupt(pipeline: EmuEditPipeline, step: int, *_: Any) -> dict[str, Any]:
        steps.append(step)
        pipeline._interrupt = True
        return {}

    call = CALL | {"prompt": ["a", "b"], "task": ["local", "new"], "composite": 0, "change_threshold": 0.0}
    edited, unedited = pipe(**call, callback_on_step_end=interrupt).images
    assert steps == [0]
    np.testing.assert_allclose(unedited, PIXELS / 255, atol=1e-6)
    assert abs(edited - PIXELS / 255).max() > 0.01


@pytest.mark.slow
def test_calls_of_a_pipeline_run_one_at_a_time_and_beside_those_of_a_copy(pipe: EmuEditPipeline) -> None:
    """An adapter of a call affects the network, and so the other calls."""
    copied, unpickled = copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))
    were_free: list[bool] = []

    def check_locks(pipeline: EmuEditPipeline, *_: Any) -> dict[str, Any]:
        with ThreadPoolExecutor(1) as pool:
            for other in (pipeline, EmuEditPipeline(**pipeline.components), copied, unpickled):
                were_free.append(pool.submit(other.sampler().lock.acquire, False).result())
        return {}

    pipe(**CALL | {"num_inference_steps": 1}, callback_on_step_end=check_locks)
    assert were_free == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_the_progress_bar_has_all_steps_of_the_scheduler_and_of_the_adapters(
    pipe: EmuEditPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import HeunDiscreteScheduler

    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    sampler = pipe.sampler()
    sampler.add_task("new", torch.ones(pipe.task_embedding.d_v), random_adapter(sampler))
    bars: list[Any] = []
    progress_bar = pipe.progress_bar
    monkeypatch.setattr(pipe, "progress_bar", lambda **options: bars.append(progress_bar(**options)) or bars[-1])
    pipe.set_progress_bar_config(disable=False)
    for tasks, n_steps in ((["local", "style"], 5), (["local", "new"], 10)):
        pipe(**CALL | {"prompt": ["a", "b"], "task": tasks})
        assert (bars[-1].n, bars[-1].total) == (n_steps, n_steps)
    assert pipe.num_timesteps == 5
