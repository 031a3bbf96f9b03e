"""What is checked before the pairs are encoded."""

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler

from emuedit.models.text_to_image import TextToImageModel
from emuedit.training import training_checks
from emuedit.training.batches import latent_files, replay
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_cache import LatentCache, LatentCacheError
from emuedit.training.distributed import TrainingProcesses
from emuedit.training.optim.optimizers import OptimizerError
from emuedit.training.presets import preset_names, with_preset
from emuedit.training.starting_point import StartError, StartingPoint
from emuedit.training.train_settings import TrainSettings
from emuedit.training.training_error import TrainingError
from tests.training.tiny_pairs import make_pair, write_pairs

ONE_CPU, ONE_GPU, SHARDED = TrainingProcesses("cpu"), TrainingProcesses("cuda"), TrainingProcesses("cuda", 4, is_sharded=True)
FROM_BASE, FROM_EDITOR = StartingPoint("base_model", "folder"), StartingPoint("base_editor", "folder", is_editor=True)


def settings(**changes: Any) -> TrainSettings:
    values = {"steps": 9, "batch_size": 8, "lr": 1e-3, "loss_weights": {"change_loss_weight": 0.5}, "dtype": "float32"}
    return TrainSettings.model_validate(values | changes)


@pytest.mark.parametrize(
    ("changes", "processes", "error", "message"),
    [
        ({"accumulation_steps": 3}, ONE_CPU, ValueError, "want a batch that 3 accumulation steps can split evenly, got 8"),
        ({"task_weights": {"locl": 2.0}}, ONE_CPU, LatentCacheError, "want task_weights for tasks from .* got 'locl'"),
        ({"optimizer": "adamw_8bit"}, ONE_CPU, OptimizerError, "want a GPU for train.optimizer adamw_8bit, got cpu; use adamw"),
        ({"ema_device": "cpu"}, SHARDED, TrainingError, "want train.ema_device same with sharded weights .* got cpu"),
        ({"cuda_graph": True}, ONE_CPU, TrainingError, "for train.cuda_graph, got the device cpu; set it to false"),
        ({"cuda_graph": True}, SHARDED, TrainingError, "for train.cuda_graph, got 4 processes, sharded weights; set it to false"),
        (
            {"cuda_graph": True, "accumulation_steps": 2, "dtype": "float16"}, ONE_GPU, TrainingError,
            "for train.cuda_graph, got 2 accumulation steps, float16; set it to false",
        ),
    ],
)  # fmt: skip
def test_settings_that_the_processes_do_not_allow_are_refused(
    changes: dict[str, Any], processes: TrainingProcesses, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        training_checks.check_settings(settings(**changes), FROM_BASE, processes)
    training_checks.check_settings(settings(), FROM_BASE, processes)


def test_an_optimizer_in_8_bits_is_refused_with_sharded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes is present, and its optimizer would update each part as if it was a parameter by itself."""
    monkeypatch.setattr("emuedit.training.optim.optimizers.importlib.import_module", lambda name: name)
    with pytest.raises(TrainingError, match=r"want train.optimizer adamw with sharded weights \(FSDP\), got adamw_8bit; set it"):
        training_checks.check_processes(settings(optimizer="adamw_8bit"), SHARDED)
    training_checks.check_processes(settings(optimizer="adamw_8bit"), ONE_GPU)


def test_a_change_mask_head_that_would_stay_untrained_is_refused(capsys: Any) -> None:
    """An editor that is continued has a trained head, which is kept."""
    without = settings(loss_weights={})
    with pytest.raises(StartError, match=r"want .*change_loss_weight above 0 .* start base_model, got 0: .* set it to 0.5, or"):
        training_checks.check_settings(without, FROM_BASE, ONE_CPU)
    training_checks.check_settings(without, FROM_EDITOR, ONE_CPU)
    training_checks.check_settings(settings(loss_weights={}, change_mask=False), FROM_BASE, ONE_CPU)
    assert capsys.readouterr().out == ""
    training_checks.check_settings(settings(change_mask=False), FROM_BASE, ONE_CPU)
    assert capsys.readouterr().out == (
        "train: change_mask is false, so these loss_weights have no effect: change_loss_weight 0.5\n"
    )


@pytest.mark.parametrize(
    ("start_type", "objective"), [("epsilon", "v_prediction"), ("v_prediction", "sample"), ("epsilon", "flow")]
)
def test_networks_of_different_prediction_types_are_not_averaged(start_type: str, objective: str) -> None:
    """Half of each was published, which is no network of either."""
    averaged, scheduler = {"objective": objective, "start_share": 0.5}, DDIMScheduler(prediction_type=start_type)
    message = f"want train.objective base or {start_type}, .* base_editor, .*0.5, got {objective}: .*; set train.start_share to 0"
    with pytest.raises(StartError, match=message):
        training_checks.check_average(settings(**averaged), FROM_EDITOR, scheduler)
    training_checks.check_average(settings(objective=objective, start_share=0.0), FROM_EDITOR, scheduler)
    training_checks.check_average(settings(**averaged), FROM_BASE, scheduler)  # which is not averaged
    for same in ("base", start_type):
        training_checks.check_average(settings(objective=same, start_share=0.5), FROM_EDITOR, scheduler)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_trains_the_head_or_has_none(name: str) -> None:
    values = json.dumps(with_preset({"preset": name}))
    training_checks.check_settings(TrainSettings.model_validate_json(values), FROM_BASE, ONE_GPU)


@pytest.mark.slow
@pytest.mark.parametrize(("held_out_share", "most_pairs"), [(0.0, 2000), (0.5, 2000), (0.9, 2000), (0.9, 3)])
def test_the_tasks_to_train_are_those_of_the_encoded_pairs(
    held_out_share: float, most_pairs: int, base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a replay sample, of which the pairs that are also new do not count as earlier ones."""
    monkeypatch.setattr(latent_files, "MAX_HELD_OUT_PAIRS", most_pairs)
    old = [make_pair(n, (16, 16)) for n in range(12)]
    folders, dataset = write_pairs(tmp_path / "old", old)
    latent_files.build(TrainingPairs(folders, dataset), base_model, tmp_path / "old cache")
    replay.write(tmp_path / "replay", LatentCache(tmp_path / "old cache", 0.0), folders, None, 5)
    folders, dataset = write_pairs(tmp_path / "new", [make_pair(n, (16, 16)) for n in (4, 10, 16, 22)])  # all of one task
    latent_files.build(TrainingPairs(folders, dataset, tmp_path / "replay"), base_model, tmp_path / "cache")
    pairs = TrainingPairs(folders, dataset, tmp_path / "replay")
    try:
        tasks = LatentCache(tmp_path / "cache", held_out_share).tasks
    except LatentCacheError as error:
        with pytest.raises(LatentCacheError, match=str(error).partition(";")[0]):
            training_checks.tasks_to_train(pairs, held_out_share)
    else:
        assert training_checks.tasks_to_train(pairs, held_out_share) == tasks
