"""The training loop, and the base_model trained by it over its autoencoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emuedit.models import text_to_image as adapter
from emuedit.tasks import TASKS
from toyworld.edits import exact_edits
from toyworld.training import __main__ as command
from toyworld.training import pretraining_corpus, train_base_model, train_vae
from toyworld.training.training_run import Recipe, device, train

POOL = 60


def tiny(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=2, batch=3)


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    recipe = Recipe(steps=2, batch=1, lr=0.1, warmup_steps=1)

    def loss_at(step: int) -> Tensor:
        return model(torch.ones(1, 1, device=device())).sum()

    train(model, loss_at, recipe, tmp_path)
    train(model, loss_at, replace(recipe, steps=3), tmp_path)
    with pytest.raises(ValueError, match="another recipe \\(lr\\)"):
        train(model, loss_at, replace(recipe, lr=0.2), tmp_path)


def test_the_painter_trains_over_its_autoencoder_and_trains_on(tmp_path: Path) -> None:
    encoder = train_vae.run(tmp_path / "vae", tiny(train_vae.RECIPE), POOL)
    made = train_base_model.run(tmp_path / "base_model", encoder, tiny(train_base_model.RECIPE), n_pool=POOL, per_task=2)
    made.save_pretrained(tmp_path / "made")
    command.publish(tmp_path / "made", tmp_path / "out")
    loaded = adapter.load(str(tmp_path / "out"))
    assert loaded.generate(["a red star on grass"], [0], steps=1, guidance=3.0).shape == (1, 3, 64, 64)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert float(loaded.scheduler.alphas_cumprod[-1]) < 1e-6  # zero terminal SNR
    on = train_base_model.run(
        tmp_path / "on", encoder, replace(tiny(train_base_model.RECIPE), lr=0.0), start=tmp_path / "out", n_pool=POOL, per_task=2
    )
    for name, value in on.unet.state_dict().items():
        torch.testing.assert_close(value, loaded.unet.state_dict()[name])


def test_the_web_shows_results_and_says_how_they_came_about(tmp_path: Path) -> None:
    encoder = train_vae.build()
    kept = pretraining_corpus.seen(pretraining_corpus.gather(encoder, tmp_path, per_task=3))
    assert len(kept) == 3 * len(TASKS)
    for k, task in enumerate(TASKS):
        some = exact_edits.edits(task.name, "train", pretraining_corpus.FROM, 3)
        for n in range(3):
            assert set(kept.texts[3 * k + n]) == {some.instructions[n], some.output_captions[n]}
        assert np.abs(kept.z[3 * k : 3 * k + 3] - pretraining_corpus.encoded(encoder, some.exact)).max() < 0.05, (
            f"not the results of {task.name}"
        )
    here = pretraining_corpus.gather(encoder, tmp_path, per_task=3)
    assert here == pretraining_corpus.gather(encoder, tmp_path, per_task=3)
    assert here != pretraining_corpus.gather(train_vae.build(), tmp_path, per_task=3), "another autoencoder sees another web"


def test_a_batch_is_the_same_whoever_takes_a_share(tmp_path: Path) -> None:
    encoder = train_vae.build()
    lessons = train_base_model.Lessons(
        train_base_model.pool(encoder, tmp_path, POOL), pretraining_corpus.gather(encoder, tmp_path, per_task=3)
    )
    said, z, objects = lessons.batch(7, 40)
    again = lessons.batch(7, 40)
    assert said == again[0]
    np.testing.assert_array_equal(z, again[1])
    assert objects.any((1, 2)).mean() > 0.5
    assert lessons.batch(8, 40)[0] != said
    besides = {text for texts in lessons.web.texts for text in texts}
    assert 0.2 < np.mean([text in besides for text in said]) < 0.8
