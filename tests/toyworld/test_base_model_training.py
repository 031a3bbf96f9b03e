"""The training loop, and the base model that it trains on the latents of a VAE."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from emuedit.models import text_to_image
from emuedit.tasks import TASKS
from toyworld.edits import exact_edits
from toyworld.training import __main__ as command
from toyworld.training import pretraining_corpus, train_base_model, train_vae
from toyworld.training.training_run import Recipe, device, train

N_SCENES = 60


def tiny(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=2, batch=3)


def test_a_resumed_training_may_not_change_its_recipe(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    recipe = Recipe(steps=2, batch=1, lr=0.1, warmup_steps=1)

    def loss_at(step: int) -> Tensor:
        return model(torch.ones(1, 1, device=device())).sum()

    train(model, loss_at, recipe, tmp_path)
    train(model, loss_at, replace(recipe, steps=3), tmp_path)
    with pytest.raises(ValueError, match="another recipe \\(lr\\)"):
        train(model, loss_at, replace(recipe, lr=0.2), tmp_path)


@pytest.mark.slow
def test_the_base_model_trains_and_continues_from_published_weights(tmp_path: Path) -> None:
    vae = train_vae.run(tmp_path / "vae", tiny(train_vae.RECIPE), N_SCENES)
    recipe = tiny(train_base_model.RECIPE)
    pipeline = train_base_model.run(tmp_path / "base_model", vae, recipe, n_scenes=N_SCENES, per_task=2)
    pipeline.save_pretrained(tmp_path / "pipeline")
    command.publish(tmp_path / "pipeline", tmp_path / "out")
    loaded = text_to_image.load(str(tmp_path / "out"))
    assert loaded.generate(["a red star on grass"], [0], steps=1, guidance_scale=3.0).shape == (1, 3, 64, 64)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert float(loaded.scheduler.alphas_cumprod[-1]) < 1e-6  # zero terminal SNR
    continued = train_base_model.run(
        tmp_path / "continued", vae, replace(recipe, lr=0.0), start=tmp_path / "out", n_scenes=N_SCENES, per_task=2
    )
    for name, value in continued.unet.state_dict().items():
        torch.testing.assert_close(value, loaded.unet.state_dict()[name])


@pytest.mark.slow
def test_the_pretraining_corpus_holds_results_with_instructions_and_captions(tmp_path: Path) -> None:
    vae = train_vae.build()
    corpus = pretraining_corpus.load_corpus(pretraining_corpus.build_corpus(vae, tmp_path, per_task=3))
    assert len(corpus) == 3 * len(TASKS)
    for k, task in enumerate(TASKS):
        edits = exact_edits.build_edits(task.name, "train", pretraining_corpus.FIRST_SCENE, 3)
        for n in range(3):
            assert set(corpus.texts[3 * k + n]) == {edits.instructions[n], edits.output_captions[n]}
        assert np.abs(corpus.z[3 * k : 3 * k + 3] - pretraining_corpus.encode_latents(vae, edits.exact)).max() < 0.05, (
            f"not the results of {task.name}"
        )
    folder = pretraining_corpus.build_corpus(vae, tmp_path, per_task=3)
    assert folder == pretraining_corpus.build_corpus(vae, tmp_path, per_task=3)
    assert folder != pretraining_corpus.build_corpus(train_vae.build(), tmp_path, per_task=3), "the folder depends on the VAE"


@pytest.mark.slow
def test_a_batch_depends_on_the_step_alone(tmp_path: Path) -> None:
    vae = train_vae.build()
    data = train_base_model.TrainingData(
        train_base_model.encode_scenes(vae, tmp_path, N_SCENES), pretraining_corpus.build_corpus(vae, tmp_path, per_task=3)
    )
    texts, z, objects = data.batch(7, 40)
    texts_again, z_again, _ = data.batch(7, 40)
    assert texts == texts_again
    np.testing.assert_array_equal(z, z_again)
    assert objects.any((1, 2)).mean() > 0.5
    assert data.batch(8, 40)[0] != texts
    corpus_texts = {text for image_texts in data.corpus.texts for text in image_texts}
    assert 0.2 < np.mean([text in corpus_texts for text in texts]) < 0.8
