import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit import EmuEditPipeline
from emuedit.data.publish import read_summary
from emuedit.editor import sampling
from emuedit.editor.settings import EditSettings
from emuedit.models import text_to_image
from emuedit.stages import train
from emuedit.stages.train import TrainParams
from emuedit.tracking import read_stats
from emuedit.training import loss
from emuedit.training.loop import TrainingError
from tests.stages.workspace import Workspace, check_stop_message, hide_mlflow, load_params, toy_world
from toyworld.edits import exact_dataset

SMALL: dict[str, Any] = {
    "steps": 6, "processes": 1, "batch_size": 4, "dtype": "float32", "device": "cpu", "warmup_steps": 2, "log_every_steps": 1,
    "eval_every_steps": 3, "held_out_share": 0.3, "stored_dtype": "float32", "task_embedding_dim": 8,
}  # fmt: skip
SAVE_OFTEN = SMALL | {"save_every_s": 0.0}
ONE_STEP = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0)

pytestmark = [pytest.mark.usefixtures("no_mlflow"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def exact_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with exact pairs of two tasks."""
    root = tmp_path_factory.mktemp("exact")
    exact_dataset.write_dataset(root, {"local": 12, "remove": 12})
    return root


def make_params(**changes: object) -> TrainParams:
    return load_params(TrainParams, "train", **SMALL | changes)


def link_data(exact_pairs: Path, root: Path) -> Path:
    """Give a root the exact pairs; returns the root."""
    root.mkdir(exist_ok=True)
    (root / "data").symlink_to(exact_pairs / "data")
    return root


def read_weights(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted((root / train.OUT).rglob("*.safetensors"))}


def load_base_model() -> text_to_image.TextToImageModel:
    return text_to_image.load(toy_world()["base_model"])


@pytest.mark.slow
def test_an_interrupted_training_resumes_with_the_same_weights(
    exact_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with EMA, optimizer, timesteps, noise, dropout and order of pairs."""
    uninterrupted, stopped = (link_data(exact_pairs, tmp_path / name) for name in ("uninterrupted", "stopped"))
    train.run(make_params(**SAVE_OFTEN), uninterrupted)
    loss_per_sample, calls = loss.loss_per_sample, []

    def interrupted_loss(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # after three steps and the held-out losses of two tasks, in the middle of a step
            raise KeyboardInterrupt
        return loss_per_sample(*arguments, **options)

    monkeypatch.setattr(loss, "loss_per_sample", interrupted_loss)
    with pytest.raises(KeyboardInterrupt):
        train.run(make_params(**SAVE_OFTEN), stopped)
    assert not (stopped / train.OUT).exists()
    monkeypatch.setattr(loss, "loss_per_sample", loss_per_sample)
    train.run(make_params(**SAVE_OFTEN), stopped)
    assert read_weights(stopped) == read_weights(uninterrupted)
    assert not list((stopped / "scratch").glob("train/*"))


def test_a_complete_editor_and_the_record_of_its_training_are_published(exact_pairs: Path, tmp_path: Path) -> None:
    root = link_data(exact_pairs, tmp_path)
    summary = train.run(make_params(steps=4), root)
    assert read_summary(root / train.OUT) == summary
    assert summary.counts["steps"] == 4
    assert summary.counts["pairs"] + summary.counts["held_out_pairs"] == 24
    assert set(summary.params["data"]) == {"data/pairs", "data/dataset"}
    index = json.loads((root / train.OUT / "model_index.json").read_text())
    assert index["_class_name"] == "EmuEditPipeline"
    logged: dict[str, Any] = {}
    for line in read_stats(root / train.OUT / "stats.jsonl"):
        logged |= line.get("metrics", {})
    assert {"loss", "lr", "grad_norm", "samples_per_second", "held_out", "held_out.local", "held_out.remove"} <= set(logged)
    editor = sampling.load(root / train.OUT)
    assert not torch.equal(editor.net.unet.conv_out.weight[:-1], load_base_model().unet.conv_out.weight)
    assert editor.net.unet.conv_in.weight[:, 8:].abs().max() > 0
    edited = editor.sample(torch.zeros(1, 3, 64, 64), ["make it red"], ["local"], ONE_STEP)
    assert edited.shape == (1, 3, 64, 64)


def test_previews_show_every_trained_task_and_change_nothing(exact_pairs: Path, tmp_path: Path) -> None:
    with_previews, without = (link_data(exact_pairs, tmp_path / name) for name in ("with", "without"))
    preview = {"every_min": 0.0, "n_edits": 2, "settings": {"steps": 1}}
    train.run(make_params(preview=preview, eval_every_steps=2, steps=4), with_previews)
    train.run(make_params(preview=None, eval_every_steps=2, steps=4), without)
    assert read_weights(with_previews) == read_weights(without)
    sheets = sorted((with_previews / train.OUT / train.PREVIEWS).iterdir())
    assert [sheet.name for sheet in sheets] == ["preview-000002.png", "preview-000004.png"]
    with Image.open(sheets[0]) as sheet:
        assert min(sheet.size) > 2 * 64
    logged = [line["metrics"] for line in read_stats(with_previews / train.OUT / "stats.jsonl") if "metrics" in line]
    success = [metrics for metrics in logged if "success.overall" in metrics]
    assert [set(metrics) for metrics in success] == [{"success.overall", "success.local", "success.remove"}] * 2
    assert all(0 <= value <= 1 for metrics in success for value in metrics.values())


def test_only_trained_tasks_are_offered_and_the_folder_is_a_pipeline(exact_pairs: Path, tmp_path: Path) -> None:
    root = link_data(exact_pairs, tmp_path)
    train.run(make_params(steps=2, change_mask=False, loss_weights={}), root)
    pipeline = EmuEditPipeline.from_pretrained(root / train.OUT)
    assert pipeline.tasks == ("local", "remove")
    assert pipeline.unet.config.out_channels == pipeline.vae.config.latent_channels
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline("make it red", Image.new("RGB", (64, 64)), task="remove", num_inference_steps=1).images
    assert image.size == (64, 64)


def test_half_precision_on_a_cpu_is_refused(exact_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"want float32 or bfloat16 for a training on a CPU, got float16; set train\.dtype"):
        train.run(make_params(dtype="float16"), link_data(exact_pairs, tmp_path))


@pytest.mark.parametrize("lr_mult_text", [0.0, 0.3])
def test_the_text_encoder_is_trained_only_with_a_learning_rate(lr_mult_text: float, exact_pairs: Path, tmp_path: Path) -> None:
    root = link_data(exact_pairs, tmp_path)
    train.run(make_params(steps=2, lr_mult_text=lr_mult_text), root)
    before = load_base_model().text_encoder.state_dict()
    after = sampling.load(root / train.OUT).parts.text_encoder.state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(changed) > 0.5 * len(before) if lr_mult_text else not changed


@pytest.mark.slow
def test_the_averaged_weights_are_updated_and_published(exact_pairs: Path, tmp_path: Path) -> None:
    """diffusers' scripts shipped averages that were never updated (diffusers#5783)."""
    roots = []
    for name, decay in (("raw", 0.0), ("averaged", 0.999)):
        roots.append(link_data(exact_pairs, tmp_path / name))
        train.run(make_params(steps=3, ema_decay=decay), roots[-1])
    raw, averaged = (sampling.load(root / train.OUT).net.unet.conv_in.weight[:, 8:].abs().mean() for root in roots)
    assert 0 < averaged < raw, "the average starts at zero there and lags behind"


def test_a_loss_that_is_not_finite_stops_with_the_ids_of_its_pairs(
    exact_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, batches = link_data(exact_pairs, tmp_path), []
    loss_per_sample = loss.loss_per_sample

    def broken_loss(*arguments: Any, **options: Any) -> Any:
        batches.append(arguments[2].ids)
        return loss_per_sample(*arguments, **options) * (float("nan") if len(batches) == 2 else 1.0)

    monkeypatch.setattr(loss, "loss_per_sample", broken_loss)
    with pytest.raises(TrainingError, match=r"got nan at step 1.*bad-batch\.json"):
        train.run(make_params(), root)
    (file,) = (root / "scratch/train").glob("*/bad-batch.json")
    assert json.loads(file.read_text()) == {"step": 1, "pair_ids": list(batches[1])}


def test_the_learning_rate_rises_stays_and_falls() -> None:
    params = make_params(steps=100, warmup_steps=10, decay_share=0.4, lr=1.0)
    rates = [params.schedule.rate(step) for step in (0, 9, 30, 60, 80, 99)]
    np.testing.assert_allclose(rates, [0.1, 1, 1, 1, 0.5, 0.025])
    cosine = params.model_copy(update={"decay": "cosine"}).schedule
    np.testing.assert_allclose([cosine.rate(step) for step in (60, 80, 99)], [1, 0.5, 0.0015], atol=1e-3)


def check_kill_and_resume(stopped: Workspace, number: signal.Signals, n_children: int) -> None:
    """Send a signal to a real process in the middle of its training, and run the same training again in this process."""
    process = stopped.start("train")
    process.wait_until(lambda: stopped.scratch_files("train", ".state.pt"))
    assert len(process.children()) >= n_children
    status, output = process.stop(number)
    if number != signal.SIGKILL:
        check_stop_message("train", number, status, output)
    assert not (stopped.folder / train.OUT).exists()
    (state,) = stopped.scratch_files("train", ".state.pt")
    assert 0 < torch.load(state, weights_only=True)["step"] < SMALL["steps"]
    stopped.run("train")


@pytest.mark.slow
def test_a_training_killed_in_one_process_resumes_with_the_same_weights(
    exact_pairs: Path, make_workspace: Callable[..., Workspace]
) -> None:
    stopped, uninterrupted = (make_workspace(name, train=SAVE_OFTEN) for name in ("stopped", "uninterrupted"))
    for workspace in (stopped, uninterrupted):
        link_data(exact_pairs, workspace.folder)
    check_kill_and_resume(stopped, signal.SIGKILL, n_children=0)
    uninterrupted.run("train")
    assert read_weights(stopped.folder) == read_weights(uninterrupted.folder)


@pytest.fixture(scope="module")
def trained_by_two(exact_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which two processes trained without an interruption."""
    root = link_data(exact_pairs, tmp_path_factory.mktemp("two") / "root")
    with pytest.MonkeyPatch.context() as patch:
        hide_mlflow(patch, tmp_path_factory.mktemp("no-mlflow"))
        train.run(make_params(processes=2), root)
    return root


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_terminated_in_two_processes_resumes_with_the_same_weights(
    exact_pairs: Path, trained_by_two: Path, make_workspace: Callable[..., Workspace]
) -> None:
    stopped = make_workspace("stopped", train=SAVE_OFTEN | {"processes": 2})
    link_data(exact_pairs, stopped.folder)
    check_kill_and_resume(stopped, signal.SIGTERM, n_children=2)
    assert read_weights(stopped.folder) == read_weights(trained_by_two)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_like_one(exact_pairs: Path, trained_by_two: Path, tmp_path: Path) -> None:
    """Each has half of every batch and gradients are averaged, so the losses are the same but for rounding."""
    alone = link_data(exact_pairs, tmp_path / "alone")
    train.run(make_params(), alone)
    one_process, two_processes = (
        [line["metrics"] for line in read_stats(root / train.OUT / "stats.jsonl") if "loss" in line.get("metrics", {})]
        for root in (alone, trained_by_two)
    )
    assert len(one_process) == len(two_processes) == SMALL["steps"]
    for key, rtol in (("loss", 1e-4), ("grad_norm", 1e-3)):
        np.testing.assert_allclose(two_processes[0][key], one_process[0][key], rtol=rtol, err_msg=key)
        # Adam makes much of rounding
        np.testing.assert_allclose(two_processes[2][key], one_process[2][key], rtol=0.02, err_msg=key)


def test_a_batch_that_processes_cannot_split_evenly_is_refused(exact_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="want a batch that 3 processes can split evenly, got 4"):
        train.run(make_params(processes=3), link_data(exact_pairs, tmp_path))
