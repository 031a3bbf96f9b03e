"""A training that cannot run is refused before its pairs are encoded, which may take hours."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from PIL import Image

from emuedit.metrics.photo_benchmark import BenchmarkError
from emuedit.stages import train
from emuedit.training.accelerate_launch import LaunchConfigError
from emuedit.training.batches import latent_files
from emuedit.training.batches.disk_space import DiskSpaceError
from emuedit.training.memory import memory_check
from emuedit.training.memory.memory_check import DeviceBusyError, MemoryFitError
from emuedit.training.optim.optimizers import OptimizerError
from emuedit.training.starting_point import StartError
from emuedit.training.training_error import TrainingError
from tests.stages.workspace import load_params, toy_world
from toyworld.edits import exact_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_mlflow")]


class EncodingBeginsError(Exception):
    """Raised in place of encoding the pairs."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with exact pairs of two tasks."""
    folder = tmp_path_factory.mktemp("exact")
    exact_dataset.write_dataset(folder, {"local": 4, "remove": 4})
    (folder / "three.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 3\nuse_cpu: true\n")
    (folder / "fsdp1.yaml").write_text("distributed_type: FSDP\nnum_processes: 2\n")
    return folder


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the stage with some params changed, until it would encode the pairs."""

    def begin_encoding(*arguments: Any, **options: Any) -> NoReturn:
        raise EncodingBeginsError

    monkeypatch.setattr(latent_files, "build", begin_encoding)

    def run_stage(**changes: Any) -> None:
        values = {"start": "base_model", "device": "cpu", "dtype": "float32", "processes": 1, "batch_size": 4, "preview": None}
        train.run(load_params(train.TrainParams, "train", **values | changes), root)

    return run_stage


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dtype": "float16"}, ValueError, r"want float32 or bfloat16 for a training on a CPU, got float16; set train\.dtype"),
        ({"processes": 3}, ValueError, "want a batch that 3 processes can split evenly, got 4"),
        ({"accelerate_config": "three.yaml"}, ValueError, "want a batch that 3 processes can split evenly, got 4"),
        ({"accelerate_config": "missing.yaml"}, LaunchConfigError, r"want a config file of accelerate, got no file at .*missing"),
        ({"accelerate_config": "fsdp1.yaml"}, LaunchConfigError, r"want fsdp_version 2 .* in .*fsdp1\.yaml, got None"),
        ({"objective": "epsilon", "zero_terminal_snr": True}, ValueError, "want v_prediction, sample or flow with zero terminal"),
        (
            {"start": "base_editor", "change_mask": False},
            StartError,
            "want train.change_mask true, as the editor base_editor was",
        ),
        (
            {"start": "base_editor", "objective": "sample", "start_share": 0.5},
            StartError,
            "want train.objective base or v_prediction, that of the start base_editor, .* got sample",
        ),
        ({"loss_weights": {}}, StartError, r"want train\.loss_weights\.change_loss_weight above 0 with change_mask true"),
        ({"optimizer": "adamw_8bit"}, OptimizerError, "want a GPU for train.optimizer adamw_8bit, got cpu"),
        ({"cuda_graph": True}, TrainingError, "for train.cuda_graph, got the device cpu; set it to false"),
        ({"held_out_share": 0.9999999}, ValueError, "want kept pairs to train on, got 8, all of them held out"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_encoded(
    changes: dict[str, Any], error: type[Exception], message: str, run: Callable[..., None]
) -> None:
    with pytest.raises(error, match=message):
        run(**changes)


def test_pairs_that_do_not_fit_on_the_disk_are_refused(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    message = r"want 0\.\d GB free in .*scratch/latents/.*, for latents of 8 pairs .* instructions .*, got 0\.0 GB .*make room"
    with pytest.raises(DiskSpaceError, match=message):
        run()


def test_an_editor_is_continued_with_another_objective_if_it_is_not_averaged(run: Callable[..., None]) -> None:
    with pytest.raises(EncodingBeginsError):
        run(start="base_editor", objective="sample", start_share=0.0)


def test_a_task_without_edits_for_a_preview_is_refused(run: Callable[..., None], tmp_path: Path) -> None:
    """The advice is about previews: the split `train` is not the evaluation's."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "judge.yaml").write_text("{clip: a, dino: b}\n")
    (tmp_path / "edits.csv").write_text("image,task,instruction,input_caption,output_caption\na.png,local,make it red,a,b\n")
    message = r"want 2 edits of local .* in the split train .*got 0; .*lower train\.preview\.n_edits.* set train\.preview to null"
    with pytest.raises(BenchmarkError, match=message):
        run(world=toy_world() | {"benchmark": str(tmp_path)}, preview={"n_edits": 2})


def test_a_missing_model_of_the_previews_judge_is_an_error(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded when edits are judged, which would be after half an hour of training."""

    def load(name: str, device: str) -> NoReturn:
        raise FileNotFoundError(f"{name} on {device}")

    monkeypatch.setattr("emuedit.models.clip.load", load)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "judge.yaml").write_text("{clip: missing, dino: b}\n")
    rows = "".join(f"a.png,{task},make it red,a,b,train\n" for task in ("local", "remove"))
    (tmp_path / "edits.csv").write_text(f"image,task,instruction,input_caption,output_caption,split\n{rows}")
    with pytest.raises(FileNotFoundError, match="missing on cpu"):
        run(world=toy_world() | {"benchmark": str(tmp_path)}, preview={"n_edits": 1})


@pytest.mark.parametrize(("capacity", "error"), [(2**20, MemoryFitError), (2**50, DeviceBusyError)])
def test_a_training_that_does_not_fit_is_refused(
    capacity: int, error: type[Exception], run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda device: 0)
    monkeypatch.setattr(memory_check, "capacity_bytes", lambda device: capacity)
    with pytest.raises(error) as refusal:
        run()
    assert type(refusal.value) is error


def test_the_estimate_is_that_of_the_largest_images_and_of_smaller_passes_after_a_failure(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[Any] = []
    monkeypatch.setattr("emuedit.training.resources.check_fits", lambda estimate, *rest: (plans.append(estimate.plan), "")[1])
    for n_failures in ("0", "1"):
        monkeypatch.setenv("EMUEDIT_HALVE_BATCHES", n_failures)
        with pytest.raises(EncodingBeginsError):
            run()
    assert [(plan.micro_batch, plan.passes, plan.previews) for plan in plans] == [(4, 1, False), (2, 2, False)]
    assert {plan.latent[1] * plan.latent[2] for plan in plans} == {16**2}, "64 x 64 px is the largest bucket"
    assert capsys.readouterr().out.count("train: memory ") == 2


def test_the_change_mask_is_turned_off_by_one_switch(run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """The loss weights by region of params.yaml may stay."""
    with pytest.raises(EncodingBeginsError):
        run(change_mask=False)
    assert (
        "train: change_mask is false, so these loss_weights have no effect: mask_balance 1.0, background_weight 0.3, "
        "change_loss_weight 0.5, change_mask_balance 0.5\n"
    ) in capsys.readouterr().out
