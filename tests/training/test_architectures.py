"""Small random networks of the shapes of SD1.5 and SDXL go all the way: two picture sizes, train, stop, resume, save, edit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.editor import checkpoint, sampling
from emuedit.editor.edit_pipeline import EmuEditPipeline
from emuedit.editor.settings import EditSettings
from emuedit.training.batches import latent_files
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.lora import LoraSettings
from emuedit.training.loss import NO_DROPOUT, draw_noise
from emuedit.training.optim.optimization import STATE_FILE
from emuedit.training.train_settings import TrainSettings
from tests.editor.tiny_pipelines import build_base_model
from tests.training.tiny_pairs import make_pair, write_pairs
from tests.training.tiny_training import SETTINGS, make_editor, train

SIZES = ((16, 24), (24, 16))
VARIANTS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA": {"lora": LoraSettings(rank=2), "gradient_checkpointing": True},
}


def make_settings(**changes: Any) -> TrainSettings:
    return SETTINGS.model_copy(update={"lr_mult_text": 0.0, "eval_every_steps": 4, "steps": 4} | changes)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_two_sizes_are_trained_resumed_saved_loaded_and_edited(kind: str, variant: str, tmp_path: Path) -> None:
    pairs = [make_pair(n, SIZES[n % 2]) for n in range(24)]
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), build_base_model(kind), tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache", SETTINGS.held_out_share)
    assert sorted(cache.sizes) == sorted(SIZES)
    settings = make_settings(**VARIANTS[variant])
    order = cache.order(settings.batch_size, settings.task_balance, settings.seed, settings.task_weights)
    buckets = {int(cache.train.bucket[order.batch(step)[0]][0]) for step in range(settings.steps)}
    assert buckets == {0, 1}, "both sizes are trained"

    uninterrupted = train(tmp_path / "cache", tmp_path / "uninterrupted", settings, kind)
    stop_after_two = StopAfter(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emuedit.training.optim.optimization.Optimization.update", stop_after_two.update)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cache", tmp_path / "stopped", settings, kind)
    assert torch.load(tmp_path / "stopped" / STATE_FILE, weights_only=True)["step"] == 2
    resumed = train(tmp_path / "cache", tmp_path / "stopped", settings, kind)
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    checkpoint.save(resumed.net, resumed.parts.pipeline, tmp_path / "editor", torch.float32)
    sampler = sampling.load(tmp_path / "editor")
    for height, width in SIZES:
        image = sampler.sample(torch.zeros(1, 3, height, width), ["make it red"], ["local"], EditSettings(steps=1)).images
        assert image.shape == (1, 3, height, width)
    assert "local" in EmuEditPipeline.from_pretrained(tmp_path / "editor").tasks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toy", "sd15", "sdxl"])
def test_weights_without_a_gradient_are_known(kind: str, tmp_path: Path) -> None:
    """Several processes wait for the gradients of all weights, except for those that are known to have none."""
    latent_files.build(
        TrainingPairs(*write_pairs(tmp_path, [make_pair(n) for n in range(6)])), build_base_model(kind), tmp_path / "cache"
    )
    cache = LatentCache(tmp_path / "cache", 0.0)
    editor = make_editor(SETTINGS, kind)
    editor.prepare(torch.device("cpu"))
    batch = cache.batch(cache.train, np.arange(2), np.zeros(2, bool))
    draws = draw_noise(tuple(batch.target.shape), 1000, NO_DROPOUT, 1.0, "test")
    editor(batch, draws, SETTINGS.loss_weights).total(SETTINGS.loss_weights).sum().backward()
    unused = [name for name, value in editor.named_parameters() if value.grad is None]
    assert editor.has_unused_weights == bool(unused), unused


class StopAfter:
    """An `Optimization.update` that interrupts the training after some steps."""

    def __init__(self, steps: int) -> None:
        from emuedit.training.optim.optimization import Optimization

        self.steps, self.made, self.original = steps, 0, Optimization.update

    @property
    def update(self) -> Any:
        def update(optimization: Any, **options: Any) -> torch.Tensor:
            if self.made == self.steps:
                raise KeyboardInterrupt
            self.made += 1
            return self.original(optimization, **options)

        return update


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["v_prediction", "sample", "flow"])
def test_an_editor_of_another_objective_is_trained_and_edits_with_its_own_scheduler(
    objective: str, cache_folder: Path, tmp_path: Path
) -> None:
    editor = train(cache_folder, tmp_path / "scratch", make_settings(objective=objective, steps=2))
    checkpoint.save(editor.net, editor.parts.pipeline, tmp_path / "editor", torch.float32)
    sampler = sampling.load(tmp_path / "editor")
    image = sampler.sample(torch.zeros(1, 3, 16, 16), ["make it red"], ["local"], EditSettings(steps=2)).images
    assert torch.isfinite(image).all()
    name = type(sampler.parts.scheduler).__name__
    assert (name == "FlowMatchEulerDiscreteScheduler") == (objective == "flow")
    if objective != "flow":
        assert sampler.parts.scheduler.config.prediction_type == objective
