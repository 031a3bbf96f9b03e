"""The held-out loss of pictures of several sizes."""

from pathlib import Path
from typing import Any

import pytest

from emuedit.training import held_out
from emuedit.training.batches import latent_files
from emuedit.training.batches.batch import Batch
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import open_accelerator
from emuedit.training.loss import NO_DROPOUT, LossParts, NoiseDraws, draw_noise
from tests.editor.tiny_pipelines import build_base_model
from tests.training.tiny_pairs import make_pair, write_pairs
from tests.training.tiny_training import SETTINGS, make_editor

SIZES = ((16, 24), (24, 16), (16, 16))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[NoiseDraws]]:
    """Task -> the draws of its parts, in order, filled by every forward pass."""
    draws_of: dict[str, list[NoiseDraws]] = {}
    editor_type = held_out.TrainableEditor
    forward = editor_type.forward

    def record(editor: Any, batch: Any, draws: NoiseDraws, weights: Any, **options: Any) -> Any:
        draws_of.setdefault(editor.net.table.names[int(batch.tasks[0])], []).append(draws)
        return forward(editor, batch, draws, weights, **options)

    monkeypatch.setattr(editor_type, "forward", record)
    return draws_of


def evaluate(cache: LatentCache) -> dict[str, float]:
    with open_accelerator() as accelerator:
        return held_out.held_out_loss(make_editor(), cache, accelerator)


@pytest.mark.slow
def test_pairs_of_several_sizes_share_the_strata_of_the_timesteps(tmp_path: Path, drawn: dict[str, list[NoiseDraws]]) -> None:
    """Each of the eight pairs of a task has a timestep in an eighth of its own, whatever the sizes of the pictures are."""
    pairs = [make_pair(n, SIZES[n // 6 % 3]) for n in range(90)]
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), build_base_model("toy"), tmp_path / "cache")
    evaluate(LatentCache(tmp_path / "cache", 0.8))
    assert {len(parts) for parts in drawn.values()} == {3}
    for task, parts in drawn.items():
        t = [int(value) for part in parts for value in part.t]
        assert sorted(value * 8 // 1000 for value in t) == list(range(8)), task
        noise = {tuple(part.eps.flatten()[:5].tolist()) for part in parts}
        assert len(noise) == 3, "parts have noise of their own"


@pytest.mark.slow
def test_pairs_of_one_size_have_the_draws_of_their_task(cache_folder: Path, drawn: dict[str, list[NoiseDraws]]) -> None:
    evaluate(LatentCache(cache_folder, 0.3))
    assert len(drawn) > 1
    for task, (draws,) in drawn.items():
        expected = draw_noise(tuple(draws.eps.shape), 1000, NO_DROPOUT, 1.0, "held out", task)
        assert draws.t.equal(expected.t)
        assert draws.eps.equal(expected.eps)
        assert not draws.no_text.any()
        assert not draws.no_image.any()


@pytest.mark.slow
def test_quarters_of_the_timesteps_are_in_the_order_of_their_noise(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a sample is replaced by its timestep."""

    def read_timesteps(editor: Any, batch: Any, draws: NoiseDraws, *_: Any, **options: Any) -> LossParts:
        return LossParts(draws.t.float(), None)

    monkeypatch.setattr(held_out.TrainableEditor, "forward", read_timesteps)
    losses = evaluate(LatentCache(cache_folder, 0.3))
    for quarter in range(4):
        assert 250 * quarter <= losses[f"held_out.t{quarter}"] < 250 * (quarter + 1)


@pytest.mark.slow
def test_held_out_pairs_are_not_mirrored(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flips: list[bool] = []
    make_batch = LatentCache.batch

    def record(cache: LatentCache, rows: Any, positions: Any, flip: Any) -> Batch:
        flips.extend(flip.tolist())
        return make_batch(cache, rows, positions, flip)

    monkeypatch.setattr(LatentCache, "batch", record)
    evaluate(LatentCache(cache_folder, 0.3))
    assert flips
    assert not any(flips)


@pytest.mark.slow
def test_the_held_out_loss_is_not_weighted_by_min_snr(tmp_path: Path) -> None:
    """Presets train with it; noisy timesteps would seem to be learned."""
    data = write_pairs(tmp_path, [make_pair(n) for n in range(60)])
    latent_files.build(TrainingPairs(*data), build_base_model("sd15"), tmp_path / "cache")
    cache, losses = LatentCache(tmp_path / "cache", 0.3), []
    with open_accelerator() as accelerator:
        for gamma in (None, 1e-3):
            editor = make_editor(SETTINGS.model_copy(update={"min_snr_gamma": gamma}), "sd15")
            editor.prepare(accelerator.device)
            assert editor.training
            losses.append(held_out.held_out_loss(editor, cache, accelerator))
    assert losses[0]
    assert losses[0] == losses[1]
