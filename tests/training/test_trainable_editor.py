from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.editor.settings import EditSettings
from emuedit.models.text_to_image import TextCondition
from emuedit.training import lora
from emuedit.training.batches import latent_files
from emuedit.training.batches.batch import Batch
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.lora import LoraSettings
from emuedit.training.loss import NO_DROPOUT, UNWEIGHTED, NoiseDraws, draw_noise
from tests.editor.tiny_pipelines import build_base_model
from tests.training.tiny_pairs import make_pair, write_pairs
from tests.training.tiny_training import SETTINGS, make_editor

FROZEN_TEXT = SETTINGS.model_copy(update={"lr_mult_text": 0.0})


@pytest.fixture
def batch(cache_folder: Any) -> Batch:
    cache = LatentCache(cache_folder, 0.0)
    return cache.batch(cache.train, np.arange(3), np.zeros(3, bool))


@pytest.fixture
def draws(batch: Batch) -> NoiseDraws:
    return draw_noise(tuple(batch.target.shape), 1000, NO_DROPOUT, 1.0, "test")


def test_frozen_text_encoders_are_no_part_of_the_editor(batch: Batch, draws: NoiseDraws) -> None:
    editor = make_editor(FROZEN_TEXT)
    editor.prepare(torch.device("cpu"))
    assert all(name.startswith("net.") for name, _ in editor.named_parameters())
    editor(batch, draws, UNWEIGHTED).denoising.mean().backward()
    text_weights = list(editor.parts.text_encoder.parameters())
    assert text_weights
    assert all(value.grad is None for value in text_weights)


def test_with_frozen_text_encoders_cached_texts_are_used(batch: Batch, draws: NoiseDraws) -> None:
    editor = make_editor(FROZEN_TEXT)
    losses = editor(batch, draws, UNWEIGHTED).denoising
    other_text = replace(batch, text=TextCondition(batch.text.hidden + 1), instructions=("unknown",) * 3)
    assert not torch.allclose(editor(other_text, draws, UNWEIGHTED).denoising, losses)
    same_text = replace(batch, instructions=("unknown",) * 3)
    assert torch.equal(editor(same_text, draws, UNWEIGHTED).denoising, losses)


@pytest.mark.slow
def test_trained_text_encoders_encode_the_instructions_again_and_get_gradients(batch: Batch, draws: NoiseDraws) -> None:
    editor = make_editor()
    editor.prepare(torch.device("cpu"))
    text_parameters = {name: value for name, value in editor.named_parameters() if name.startswith("text.0.")}
    assert text_parameters
    losses = editor(batch, draws, UNWEIGHTED).denoising
    losses.mean().backward()
    with_gradient = [name for name, value in text_parameters.items() if value.grad is not None and value.grad.abs().sum() > 0]
    assert len(with_gradient) > 0.5 * len(text_parameters)
    other_cached_text = replace(batch, text=TextCondition(batch.text.hidden + 1))
    torch.testing.assert_close(editor(other_cached_text, draws, UNWEIGHTED).denoising, losses)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toy", "sdxl"])
def test_preparing_switches_to_training_of_every_weight(kind: str) -> None:
    editor = make_editor(kind=kind)
    editor.eval().requires_grad_(False)
    editor.prepare(torch.device("cpu"))
    assert editor.training
    assert editor.net.unet.training
    assert all(value.requires_grad for value in editor.parameters())
    encoders = {name.split(".")[1] for name, _ in editor.named_parameters() if name.startswith("text.")}
    assert encoders == ({"0", "1"} if kind == "sdxl" else {"0"})


def test_each_sample_has_the_embedding_of_its_own_task(batch: Batch, draws: NoiseDraws, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = make_editor(FROZEN_TEXT)
    embeddings: list[torch.Tensor] = []
    forward: Callable[..., Any] = editor.net.forward
    monkeypatch.setattr(editor.net, "forward", lambda *inputs: (embeddings.append(inputs[4]), forward(*inputs))[1])
    editor(batch, draws, UNWEIGHTED)
    assert torch.equal(embeddings[0], editor.net.table.v[batch.tasks])


def test_the_base_models_own_network_is_given_up() -> None:
    """Two U-Nets in memory would be one too many."""
    editor = make_editor()
    assert editor.parts.unet is editor.net.unet
    assert editor.parts.pipeline.unet is editor.net.unet


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toy", "sd15", "sdxl"])
def test_an_editor_in_training_makes_samples_and_trains_on(kind: str) -> None:
    editor = make_editor(kind=kind)
    editor.prepare(torch.device("cpu"))
    with editor.sampling() as sampler:
        assert not editor.training
        image = sampler.sample(torch.zeros(1, 3, 16, 16), ["make it red"], ["local"], EditSettings(steps=1)).images
    assert image.shape == (1, 3, 16, 16)
    assert editor.training
    assert all(value.requires_grad for value in editor.parameters())


def test_samples_of_an_editor_in_training_have_the_resolution_of_the_training() -> None:
    """Its start may be an editor trained at another one."""
    for resolution, expected in ((32, 32), (None, 16)):
        editor = make_editor(FROZEN_TEXT.model_copy(update={"resolution": resolution}))
        editor.parts.pipeline.register_to_config(training={"resolution": 256})
        with editor.sampling() as sampler:
            assert sampler.resolution_px == expected


@pytest.mark.slow
def test_an_editor_with_adapters_in_float16_makes_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where frozen weights stay in float32 but here; a GPU has them in float16."""
    add_adapters = lora.add_adapters
    monkeypatch.setattr(lora, "add_adapters", lambda unet, settings, _: add_adapters(unet, settings, torch.float16))
    editor = make_editor(FROZEN_TEXT.model_copy(update={"dtype": "float16", "lora": LoraSettings(rank=2)}), kind="sdxl")
    editor.prepare(torch.device("cpu"))
    with editor.sampling() as sampler:
        image = sampler.sample(torch.zeros(1, 3, 16, 16), ["make it red"], ["local"], EditSettings(steps=2)).images
    assert image.isfinite().all()


@pytest.mark.slow
def test_new_adapters_depend_on_the_seed_alone() -> None:
    def adapters(seed: int, n_draws: int = 0) -> torch.Tensor:
        editor = make_editor(FROZEN_TEXT.model_copy(update={"lora": LoraSettings(rank=2), "seed": seed}))
        torch.rand(n_draws)
        state = torch.get_rng_state()
        editor.prepare(torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([value.detach().flatten() for name, value in editor.named_parameters() if "lora_A" in name])

    first = adapters(0)
    assert torch.equal(adapters(0, n_draws=3), first)
    assert (adapters(1) != first).all()


@pytest.mark.slow
def test_tokens_of_a_fixed_shape_give_the_same_loss(batch: Batch, draws: NoiseDraws) -> None:
    editor = make_editor()
    editor.prepare(torch.device("cpu"))
    batch = replace(batch, instructions=("remove the star", "remove the star", "add a ring"))
    fixed, distinct = editor.tokenized(batch, fixed_shape=True), editor.tokenized(batch)
    assert fixed.tokens is not None
    assert distinct.tokens is not None
    assert (len(fixed.tokens[0].ids), len(distinct.tokens[0].ids)) == (4, 3)
    with torch.no_grad():
        losses = [editor(part, draws, UNWEIGHTED).denoising for part in (batch, fixed, distinct)]
    torch.testing.assert_close(losses[1], losses[0])
    assert torch.equal(losses[2], losses[0])


@pytest.mark.slow
def test_an_empty_instruction_is_the_null_text(batch: Batch, draws: NoiseDraws) -> None:
    editor = make_editor()
    editor.prepare(torch.device("cpu"))
    dropped = replace(draws, no_text=torch.tensor([True, True, True]))
    empty = replace(batch, instructions=("", "", ""))
    with torch.no_grad():
        torch.testing.assert_close(editor(empty, draws, UNWEIGHTED).denoising, editor(batch, dropped, UNWEIGHTED).denoising)


@pytest.mark.slow
def test_frozen_text_encoders_need_no_tokens(batch: Batch) -> None:
    assert make_editor(FROZEN_TEXT).tokenized(batch) is batch


@pytest.mark.slow
def test_min_snr_is_refused_where_the_noise_schedule_of_the_start_ends_in_pure_noise() -> None:
    """The settings alone do not show it: `objective: base` keeps the schedule of the base model or editor."""
    settings = SETTINGS.model_copy(update={"min_snr_gamma": 5.0})
    with pytest.raises(ValueError, match="want min_snr_gamma null with the noise schedule of the start"):
        make_editor(settings, "toy")
    assert make_editor(settings, "sd15").settings.min_snr_gamma == 5.0


@pytest.mark.slow
def test_the_loss_is_weighted_by_min_snr_unless_it_is_not_to_be(tmp_path: Path) -> None:
    data = write_pairs(tmp_path, [make_pair(n) for n in range(4)])
    latent_files.build(TrainingPairs(*data), build_base_model("sd15"), tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache", 0.0)
    batch = cache.batch(cache.train, np.arange(3), np.zeros(3, bool))
    draws = draw_noise(tuple(batch.target.shape), 1000, NO_DROPOUT, 1.0, "test")
    weighted, plain = (make_editor(FROZEN_TEXT.model_copy(update={"min_snr_gamma": gamma}), "sd15") for gamma in (1e-3, None))
    with torch.no_grad():
        want = plain(batch, draws, UNWEIGHTED).denoising
        assert (weighted(batch, draws, UNWEIGHTED).denoising < 0.5 * want).all()
        assert torch.equal(weighted(batch, draws, UNWEIGHTED, weight_timesteps=False).denoising, want)


def test_frozen_weights_in_half_precision_are_never_on_the_device_in_float32() -> None:
    """The meta device stands for a GPU: whatever is there before the adapters are added would be in float32."""
    editor = make_editor(FROZEN_TEXT.model_copy(update={"dtype": "bfloat16", "lora": LoraSettings(rank=2)}))
    devices: set[torch.device] = set()
    add_adapters = lora.add_adapters
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "add_adapters", lambda unet, *settings: (devices.add(unet.device), add_adapters(unet, *settings)))
        editor.prepare(torch.device("meta"))
    assert devices == {torch.device("cpu")}
    frozen = [value for value in editor.net.unet.parameters() if not value.requires_grad]
    assert {(value.device.type, value.dtype) for value in frozen} == {("meta", torch.bfloat16)}
