import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.tasks import TASKS
from emuedit.tracking import read_stats
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.distributed import DistributedError, open_accelerator, run_distributed
from emuedit.training.held_out import PAIRS_PER_TASK, held_out_loss
from emuedit.training.lora import LoraSettings
from emuedit.training.optim.optimization import STATE_FILE
from emuedit.training.trainable_editor import TrainableEditor
from tests.training.tiny_training import SETTINGS, make_editor, train, train_in_process
from tests.warm_server import warm_up

SPEED = {"samples_per_second": 0, "mfu": 0, "memory_gib": 0}
"""Metrics of the machine."""


def metrics(scratch: Path) -> list[dict[str, Any]]:
    """Metrics of every step, in the order in which they were logged."""
    steps: dict[int, dict[str, Any]] = {}
    for line in read_stats(scratch / "stats.jsonl"):
        if "metrics" in line:
            steps.setdefault(line["step"], {}).update(line["metrics"])
    return [values | {"step": step} for step, values in steps.items()]


def state(scratch: Path) -> dict[str, Any]:
    return torch.load(scratch / STATE_FILE, weights_only=True)


def held_out_losses(scratch: Path) -> dict[str, float]:
    """The last held-out losses by name."""
    return {name: value for name, value in metrics(scratch)[-1].items() if name.startswith("held_out")}


def assert_same_training(scratch: Path, other: Path) -> None:
    """Weights, EMA, optimizer and logged losses are equal, bit for bit."""
    first, second = state(scratch), state(other)
    for part in ("weights", "ema"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name
    torch.testing.assert_close(first["optimizer"], second["optimizer"], rtol=0, atol=0)
    for values, other_values in zip(metrics(scratch), metrics(other), strict=True):
        assert {**values, **SPEED} == {**other_values, **SPEED}


@pytest.fixture(scope="module")
def finished(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainableEditor, Path]:
    """An editor after an uninterrupted training, and the scratch folder of that training; neither is to be changed."""
    scratch = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emuedit.tracking.stats._Mirror._try", lambda mirror: None)
        return train(cache_folder, scratch), scratch


@pytest.mark.slow
def test_a_training_stopped_half_way_and_resumed_equals_an_uninterrupted_one(
    cache_folder: Path, tmp_path: Path, change_losses: Any, finished: tuple[TrainableEditor, Path]
) -> None:
    """With trained text encoders, EMA, optimizer, timesteps, noise, dropout and the order of pairs."""
    n_evaluated = len(set(LatentCache(cache_folder, SETTINGS.held_out_share).held_out.task.tolist()))
    stop_at = 3 + n_evaluated + 2  # three steps, the evaluation, and in the middle of the fifth step

    def stop(call: int, losses: torch.Tensor) -> torch.Tensor:
        if call == stop_at:
            raise KeyboardInterrupt
        return losses

    change_losses(stop)
    with pytest.raises(KeyboardInterrupt):
        train(cache_folder, tmp_path)
    assert state(tmp_path)["step"] == 4
    resumed = train(cache_folder, tmp_path)  # the count of calls goes on, so it is not stopped again
    editor, scratch = finished
    assert_same_training(tmp_path, scratch)
    for name, value in editor.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.fixture(scope="module")
def of_two_processes(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a training of two processes that was not interrupted, and of one of which a process was killed half way."""
    warm_up()
    uninterrupted, killed = tmp_path_factory.mktemp("uninterrupted"), tmp_path_factory.mktemp("killed")
    with pytest.raises(DistributedError, match=r"a training process (died|failed)"):
        run_distributed(2, "cpu", train_in_process, cache_folder, uninterrupted, killed, SETTINGS, 1)
    assert state(killed)["step"] in (2, 3), "it ends before or after the first process has saved the third step"
    return uninterrupted, killed


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_that_die_half_way_and_resume_equal_uninterrupted_ones(
    cache_folder: Path, tmp_path: Path, finished: tuple[TrainableEditor, Path], of_two_processes: tuple[Path, Path]
) -> None:
    """One of them is killed in the middle of the fourth step. One process makes the same first step, rounding apart."""
    uninterrupted, resumed = of_two_processes[0], shutil.copytree(of_two_processes[1], tmp_path / "resumed")
    run_distributed(2, "cpu", train_in_process, cache_folder, None, resumed, SETTINGS)
    assert_same_training(resumed, uninterrupted)
    (first, *_), (first_alone, *_) = metrics(uninterrupted), metrics(finished[1])
    for key, rtol in (("loss", 1e-4), ("loss.denoising", 1e-4), ("loss.change_mask", 1e-4), ("grad_norm", 1e-3)):
        np.testing.assert_allclose(first[key], first_alone[key], rtol=rtol, err_msg=key)
    evaluated, evaluated_alone = (held_out_losses(folder) for folder in (uninterrupted, finished[1]))
    assert evaluated.keys() == evaluated_alone.keys(), "one process reports the tasks of both"
    for key, value in evaluated_alone.items():
        np.testing.assert_allclose(evaluated[key], value, rtol=1e-2, err_msg=key)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_training_whose_main_process_dies_resumes_too(
    cache_folder: Path, tmp_path: Path, of_two_processes: tuple[Path, Path]
) -> None:
    """It is the one that writes the state and the statistics."""
    with pytest.raises(DistributedError, match=r"a training process died \(process 0 by SIGKILL"):
        run_distributed(2, "cpu", train_in_process, cache_folder, None, tmp_path, SETTINGS, 0)
    assert state(tmp_path)["step"] == 3
    run_distributed(2, "cpu", train_in_process, cache_folder, None, tmp_path, SETTINGS)
    assert_same_training(tmp_path, of_two_processes[0])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_training_of_two_processes_continues_in_one(
    cache_folder: Path, tmp_path: Path, finished: tuple[TrainableEditor, Path], of_two_processes: tuple[Path, Path]
) -> None:
    resumed = shutil.copytree(of_two_processes[1], tmp_path / "resumed")
    train(cache_folder, resumed)
    for values, values_alone in zip(metrics(resumed), metrics(finished[1]), strict=True):
        np.testing.assert_allclose(values["loss"], values_alone["loss"], rtol=1e-3)


VARIANTS: list[dict[str, Any]] = [{"accumulation_steps": 2}, {"accumulation_steps": 4}, {"gradient_checkpointing": True}]


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(f"{k}-{v}" for k, v in changes.items()))
def test_what_saves_memory_changes_a_training_by_rounding_only(
    changes: dict[str, Any], cache_folder: Path, tmp_path: Path, finished: tuple[TrainableEditor, Path]
) -> None:
    train(cache_folder, tmp_path, SETTINGS.model_copy(update=changes))
    for values, usual in zip(metrics(tmp_path), metrics(finished[1]), strict=True):
        np.testing.assert_allclose(values["loss"], usual["loss"], rtol=1e-3)
        np.testing.assert_allclose(values["grad_norm"], usual["grad_norm"], rtol=1e-2)


@pytest.mark.parametrize("changes", [{"accumulation_steps": 3}, {"batch_size": 3, "accumulation_steps": 2}])
def test_a_batch_that_accumulation_steps_cannot_split_is_refused(
    changes: dict[str, Any], cache_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"want a batch that \d accumulation steps can split evenly, got"):
        train(cache_folder, tmp_path, SETTINGS.model_copy(update=changes))


LORA = SETTINGS.model_copy(update={"lora": LoraSettings(rank=2), "lr_mult_text": 0.0})


@pytest.mark.slow
def test_adapters_are_trained_resumed_and_merged(cache_folder: Path, tmp_path: Path, change_losses: Any) -> None:
    uninterrupted = train(cache_folder, tmp_path / "uninterrupted", LORA)
    start = make_editor(LORA).state_dict()
    assert uninterrupted.state_dict().keys() == start.keys(), "merged: the layers are those of an ordinary editor"
    changed = {name for name, value in uninterrupted.state_dict().items() if not torch.equal(value, start[name])}
    assert any(name.endswith("to_q.weight") for name in changed)
    assert "net.unet.conv_in.weight" in changed
    assert not any(".resnets." in name for name in changed)

    def stop(call: int, losses: torch.Tensor) -> torch.Tensor:
        if call == 5:
            raise KeyboardInterrupt
        return losses

    change_losses(stop)
    with pytest.raises(KeyboardInterrupt):
        train(cache_folder, tmp_path / "stopped", LORA)
    resumed = train(cache_folder, tmp_path / "stopped", LORA)
    assert_same_training(tmp_path / "stopped", tmp_path / "uninterrupted")
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.slow
def test_the_editor_holds_the_averaged_weights_afterwards_and_is_frozen(finished: tuple[TrainableEditor, Path]) -> None:
    editor, scratch = finished
    saved, start = state(scratch), dict(make_editor().named_parameters())
    for name, value in editor.named_parameters():
        assert torch.equal(value, saved["ema"][name]), name
        assert not value.requires_grad
    changed = [name for name, value in saved["ema"].items() if not torch.equal(value, start[name])]
    assert len(changed) > 0.9 * len(start)
    assert not torch.equal(saved["ema"]["net.unet.conv_in.weight"], saved["weights"]["net.unet.conv_in.weight"])
    assert not editor.training


def test_losses_rates_speed_and_held_out_losses_are_logged(cache_folder: Path, finished: tuple[TrainableEditor, Path]) -> None:
    logged = metrics(finished[1])
    assert [values["step"] for values in logged] == [1, 2, 3, 4, 5, 6]
    for step, values in enumerate(logged):
        assert {"loss", "lr", "grad_norm", "samples_per_second"} <= values.keys()
        weighted = values["loss.denoising"] + SETTINGS.loss_weights.change_loss_weight * values["loss.change_mask"]
        np.testing.assert_allclose(weighted, values["loss"], rtol=1e-6)
        assert 0 < values["loss.change_mask"] < 10
        assert values["lr"] == SETTINGS.schedule.rate(step)
        assert ("held_out" in values) == (values["step"] in (3, 6))
    cache = LatentCache(cache_folder, SETTINGS.held_out_share)
    names = {f"held_out.{TASKS[row].name}" for row in cache.held_out.task}
    assert len(names) > 1
    times = {f"held_out.t{quarter}" for quarter in range(4)}
    assert names == {name for name in logged[-1] if name.startswith("held_out.")} - times
    assert times & logged[-1].keys()
    np.testing.assert_allclose(logged[-1]["held_out"], np.mean([logged[-1][name] for name in names]))


def test_the_held_out_loss_is_that_of_the_averaged_weights(cache_folder: Path, finished: tuple[TrainableEditor, Path]) -> None:
    editor, scratch = finished
    cache = LatentCache(cache_folder, SETTINGS.held_out_share)
    with open_accelerator() as accelerator:
        again = held_out_loss(editor, cache, accelerator)
    assert again == held_out_losses(scratch)


@pytest.mark.slow
def test_the_held_out_loss_reads_some_pairs_of_every_task(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor, cache = make_editor(), LatentCache(cache_folder, SETTINGS.held_out_share)
    batches: list[Any] = []
    forward = editor.forward
    monkeypatch.setattr(editor, "forward", lambda *args, **options: (batches.append(args[0]), forward(*args, **options))[1])
    with open_accelerator() as accelerator:
        held_out_loss(editor, cache, accelerator)
    assert {batch.tasks[0].item() for batch in batches} == set(cache.held_out.task.tolist())
    for batch in batches:
        assert len(set(batch.tasks.tolist())) == 1
        assert set(batch.ids) <= set(cache.held_out.pair_ids.tolist())
        n_pairs = (cache.held_out.task == batch.tasks[0].item()).sum()
        assert len(batch) == min(PAIRS_PER_TASK, n_pairs)


def test_without_held_out_pairs_there_is_no_held_out_loss(cache_folder: Path) -> None:
    with open_accelerator() as accelerator:
        assert held_out_loss(make_editor(), LatentCache(cache_folder, 0.0), accelerator) == {}
