import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit import EmuEditPipeline
from emuedit.data.publish import PREVIEWS, STATS_FILE, logs_folder, read_folder, read_summary
from emuedit.data.records import Verdict
from emuedit.editor import sampling
from emuedit.editor.settings import EditSettings
from emuedit.models import text_to_image
from emuedit.stages import MEMORY_ENV, train
from emuedit.stages.train import TrainParams
from emuedit.tracking import read_stats
from emuedit.training import loss, starting_point, training_checks
from emuedit.training.distributed import n_passes
from emuedit.training.loss import LossParts
from emuedit.training.optim.optimization import Optimization
from emuedit.training.optim.optimizers import OptimizerError
from emuedit.training.training_error import TrainingError
from tests.stages.workspace import Workspace, check_stop_message, hide_mlflow, load_params, toy_world
from tests.warm_server import warm_up
from toyworld.edits import exact_dataset

SMALL: dict[str, Any] = {
    "start": "base_model", "steps": 6, "processes": 1, "batch_size": 4, "dtype": "float32", "device": "cpu", "warmup_steps": 2,
    "log_every_steps": 1, "eval_every_steps": 3, "held_out_share": 0.3, "stored_dtype": "float32", "task_embedding_dim": 8,
    "preview": None,
}  # fmt: skip
SAVE_OFTEN = SMALL | {"save_every_s": 0.0}
LATENTS, LAST_WEIGHTS = "scratch/latents", "last-weights.pt"
ONE_STEP = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_mlflow"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def exact_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with exact pairs of two tasks."""
    root = tmp_path_factory.mktemp("exact")
    exact_dataset.write_dataset(root, {"local": 12, "remove": 12})
    return root


def make_params(**changes: object) -> TrainParams:
    return load_params(TrainParams, "train", **SMALL | changes)


@pytest.fixture(autouse=True)
def no_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings do not count operations and memory, nor free memory: a third of the time of a tiny one. `trained` does."""
    monkeypatch.setattr("emuedit.training.loop.count_flops", lambda *arguments: 1)
    monkeypatch.setattr(training_checks, "check_memory", lambda *arguments: [])
    monkeypatch.setattr(train, "gc", SimpleNamespace(collect=int))


def link_data(exact_pairs: Path, root: Path) -> Path:
    """Give a root the exact pairs, and their latents where a training has encoded them; returns the root."""
    root.mkdir(exist_ok=True)
    (root / "data").symlink_to(exact_pairs / "data")
    if (exact_pairs / LATENTS).exists():
        shutil.copytree(exact_pairs / LATENTS, root / LATENTS)
    return root


def read_weights(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted((root / train.OUT).rglob("*.safetensors"))}


def load_base_model() -> text_to_image.TextToImageModel:
    return text_to_image.load(toy_world()["base_model"])


@pytest.fixture(scope="module")
def trained(exact_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which one process trained with previews and without an interruption; not to be changed.

    Its last weights, which are not published, are in LAST_WEIGHTS.
    """
    root = link_data(exact_pairs, tmp_path_factory.mktemp("trained") / "root")
    use_average = Optimization.use_average

    def record_and_use_average(optimization: Optimization) -> None:
        torch.save(optimization.module.state_dict(), root / LAST_WEIGHTS)
        use_average(optimization)

    with pytest.MonkeyPatch.context() as patch:
        hide_mlflow(patch, tmp_path_factory.mktemp("no-mlflow"))
        patch.setattr(Optimization, "use_average", record_and_use_average)
        train.run(make_params(preview={"every_min": 0.0, "n_edits": 2, "settings": {"steps": 1}}), root)
    shutil.copytree(root / LATENTS, exact_pairs / LATENTS)
    return root


def logged(root: Path) -> list[dict[str, Any]]:
    """Metrics in the order in which they were logged."""
    return [line["metrics"] for line in read_stats(logs_folder(root, "train") / STATS_FILE) if "metrics" in line]


def test_a_complete_editor_and_the_record_of_its_training_are_published(trained: Path) -> None:
    summary = read_summary(trained / train.OUT)
    assert summary.counts["steps"] == SMALL["steps"]
    assert summary.counts["pairs"] + summary.counts["held_out_pairs"] == 24
    assert set(summary.params["data"]) == {"data/pairs", "data/dataset"}
    index = json.loads((trained / train.OUT / "model_index.json").read_text())
    assert index["_class_name"] == "EmuEditPipeline"
    names = {name for metrics in logged(trained) for name in metrics}
    assert {"loss", "lr", "grad_norm", "samples_per_second", "held_out", "held_out.local", "held_out.remove"} <= names
    editor = sampling.load(trained / train.OUT)
    assert not torch.equal(editor.net.unet.conv_out.weight[:-1], load_base_model().unet.conv_out.weight)
    assert editor.net.unet.conv_in.weight[:, 8:].abs().max() > 0
    edited = editor.sample(torch.zeros(1, 3, 64, 64), ["make it red"], ["local"], ONE_STEP).images
    assert edited.shape == (1, 3, 64, 64)
    assert not list((trained / "scratch").glob("train/*"))


def test_previews_show_every_trained_task(trained: Path) -> None:
    """That they change nothing is seen below, where a training without them is killed and resumed with the same weights."""
    sheets = sorted((logs_folder(trained, "train") / PREVIEWS).iterdir())
    assert [sheet.name for sheet in sheets] == ["preview-000003.png", "preview-000006.png"]
    with Image.open(sheets[0]) as sheet:
        assert min(sheet.size) > 2 * 64
    success = [metrics for metrics in logged(trained) if "success.overall" in metrics]
    assert [set(metrics) for metrics in success] == [{"success.overall", "success.local", "success.remove"}] * 2
    assert all(0 <= value <= 1 for metrics in success for value in metrics.values())


def test_without_head_and_trained_text_encoders_the_folder_is_a_pipeline_of_the_trained_tasks(
    exact_pairs: Path, tmp_path: Path
) -> None:
    root = link_data(exact_pairs, tmp_path)
    train.run(make_params(steps=1, change_mask=False, loss_weights={}, lr_mult_text=0.0), root)
    pipeline = EmuEditPipeline.from_pretrained(root / train.OUT)
    assert pipeline.tasks == ("local", "remove")
    assert pipeline.unet.config.out_channels == pipeline.vae.config.latent_channels
    assert not changed_text_weights(root)
    assert all("loss.change_mask" not in metrics for metrics in logged(root))
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline("make it red", Image.new("RGB", (64, 64)), task="remove", num_inference_steps=1).images
    assert image.size == (64, 64)


def changed_text_weights(root: Path) -> list[str]:
    """Names of the published text encoder's weights that differ from the base model's."""
    before = load_base_model().text_encoder.state_dict()
    after = sampling.load(root / train.OUT).parts.text_encoder.state_dict()
    return [name for name, value in after.items() if not torch.equal(value, before[name])]


def test_the_text_encoder_is_trained_with_a_learning_rate(trained: Path) -> None:
    assert len(changed_text_weights(trained)) > 0.5 * len(load_base_model().text_encoder.state_dict())


def test_the_averaged_weights_are_updated_and_published(trained: Path) -> None:
    """diffusers' scripts shipped averages that were never updated (diffusers#5783)."""
    last = torch.load(trained / LAST_WEIGHTS, weights_only=True)["net.unet.conv_in.weight"][:, 8:].abs().mean()
    averaged = sampling.load(trained / train.OUT).net.unet.conv_in.weight[:, 8:].abs().mean()
    assert 0 < averaged < last, "the average starts at zero there and lags behind"


def test_a_loss_that_is_not_finite_stops_with_the_ids_of_its_pairs(
    exact_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, batches, loss_parts = link_data(exact_pairs, tmp_path), [], loss.loss_parts

    def broken_loss(*arguments: Any, **options: Any) -> LossParts:
        batches.append(arguments[2].ids)
        parts = loss_parts(*arguments, **options)
        return parts._replace(denoising=parts.denoising * (float("nan") if len(batches) == 2 else 1.0))

    monkeypatch.setattr(loss, "loss_parts", broken_loss)
    with pytest.raises(TrainingError, match=r"got nan at step 1.*bad-batch\.json"):
        train.run(make_params(), root)
    (file,) = (root / "scratch/train").glob("*/bad-batch.json")
    assert json.loads(file.read_text()) == {"step": 1, "pair_ids": list(batches[1])}


def check_kill(stopped: Workspace, number: signal.Signals, n_children: int) -> None:
    """Send a signal to a real process in the middle of its training."""
    process = stopped.start("train")
    process.wait_until(lambda: stopped.scratch_files("train", ".state.pt"))
    assert len(process.children()) >= n_children
    status, output = process.stop(number)
    if number != signal.SIGKILL:
        check_stop_message("train", number, status, output)
    assert not (stopped.folder / train.OUT).exists()
    (state,) = stopped.scratch_files("train", ".state.pt")
    assert 0 < torch.load(state, weights_only=True)["step"] < SMALL["steps"]


def test_a_training_killed_in_one_process_resumes_with_the_same_weights(
    exact_pairs: Path, trained: Path, make_workspace: Callable[..., Workspace]
) -> None:
    """Bit for bit, with EMA, optimizer, timesteps, noise, dropout and order of pairs, and whether or not it makes previews."""
    stopped = make_workspace("stopped", train=SAVE_OFTEN)
    link_data(exact_pairs, stopped.folder)
    check_kill(stopped, signal.SIGKILL, n_children=0)
    stopped.run("train")
    assert read_weights(stopped.folder) == read_weights(trained)
    files = [read_summary(root / train.OUT).shards for root in (stopped.folder, trained)]
    assert files[0] == files[1], "no file has times or random names in it, which would make every later stage run again"
    assert not list((stopped.folder / "scratch").glob("train/*"))


@pytest.mark.timeout(600)
def test_two_processes_train_like_one_that_continues_after_they_were_terminated(
    exact_pairs: Path, trained: Path, make_workspace: Callable[..., Workspace]
) -> None:
    """Each has half of every batch and gradients are averaged, so the losses are the same but for rounding."""
    stopped = make_workspace("stopped", train=SAVE_OFTEN | {"processes": 2})
    link_data(exact_pairs, stopped.folder)
    check_kill(stopped, signal.SIGTERM, n_children=2)
    stopped.run("train", processes=1)
    losses: list[dict[int, dict[str, Any]]] = []
    for root in (trained, stopped.folder):
        lines = [line for line in read_stats(logs_folder(root, "train") / STATS_FILE) if "loss" in line.get("metrics", {})]
        losses.append({line["step"]: line["metrics"] for line in lines})
    assert list(losses[0]) == list(losses[1]) == list(range(1, SMALL["steps"] + 1))
    for key, rtol in (("loss", 1e-4), ("grad_norm", 1e-3)):
        np.testing.assert_allclose(losses[1][1][key], losses[0][1][key], rtol=rtol, err_msg=key)
        # Adam makes much of rounding
        np.testing.assert_allclose(losses[1][3][key], losses[0][3][key], rtol=0.02, err_msg=key)


def test_what_two_processes_trained_is_read_without_an_optimizer(
    exact_pairs: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of `optimizer: adamw_8bit` needs a GPU, and this process reads the weights on the CPU."""

    def refuse(*arguments: object) -> NoReturn:
        raise OptimizerError("want a GPU")

    monkeypatch.setattr("emuedit.training.optim.optimization.build_optimizer", refuse)  # not in the processes that train
    root = link_data(exact_pairs, tmp_path)
    warm_up()
    train.run(make_params(processes=2), root)
    params = make_params()
    start = starting_point.resolve("base_model", params.world, root)
    untrained, _ = start.editor(("local", "remove"), params.task_embedding_dim, True, 0)
    before, alone, weights = (
        torch.cat([value.flatten() for _, value in sorted(net.state_dict().items())])
        for net in (untrained, *(sampling.load(folder / train.OUT).net for folder in (trained, root)))
    )
    assert (weights - alone).norm() < 0.01 * (alone - before).norm()


@pytest.mark.parametrize(
    ("batch_size", "accumulation_steps", "world_size", "before", "after"),
    [(16, 1, 1, 16, 8), (16, 2, 2, 8, 4), (6, 1, 2, 3, 1), (9, 1, 1, 9, 3), (15, 1, 3, 5, 1), (6, 3, 1, 2, 1)],
)
def test_a_training_that_ran_out_of_memory_has_passes_of_at_most_half_the_pairs(
    batch_size: int, accumulation_steps: int, world_size: int, before: int, after: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    params = make_params(batch_size=batch_size, accumulation_steps=accumulation_steps)
    assert train._with_smaller_passes(params, world_size) == params
    monkeypatch.setenv(MEMORY_ENV, "1")
    steps = train._with_smaller_passes(params, world_size).accumulation_steps
    assert batch_size // world_size // n_passes(batch_size, steps, world_size) == after
    assert f"train: ran out of memory with {before} pairs per pass; retrying with at most {after}" in capsys.readouterr().out


def test_a_training_that_cannot_halve_its_passes_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(MEMORY_ENV, "1")
    params = make_params(batch_size=4, accumulation_steps=4)
    assert train._with_smaller_passes(params, 2) == params
    assert "which cannot be halved; retrying unchanged; set train.gradient_checkpointing" in capsys.readouterr().out


def test_an_editor_is_continued_with_earlier_pairs_and_a_record_of_its_ancestors(trained: Path, tmp_path: Path) -> None:
    exact_dataset.write_dataset(tmp_path, {"segment": 8, "local": 8})
    parent = trained / train.OUT
    continued: dict[str, Any] = {"start": str(parent), "steps": 2, "replay_pairs": 6, "resolution": 32}
    summary = train.run(make_params(**continued, start_share=0.0), tmp_path)
    editor, parent_editor = sampling.load(tmp_path / train.OUT), sampling.load(parent)
    assert (parent_editor.resolution_px, editor.resolution_px) == (64, 32), "each is edited at the size of its training"
    assert editor.tasks == ("local", "remove", "segment")
    assert summary.counts["replayed_pairs"] > 0
    assert [ancestor["weights"] for ancestor in summary.params["ancestors"]] == [parent_editor.fingerprint]
    change = (editor.net.unet.conv_in.weight - parent_editor.net.unet.conv_in.weight).abs().max()
    assert 0 < change < 0.1
    tasks = {verdict.task for verdict in read_folder(tmp_path / train.OUT / "replay/verdicts", Verdict)}
    assert tasks == {"local", "remove", "segment"}

    train.run(make_params(**continued, start_share=0.5), tmp_path)
    averaged = sampling.load(tmp_path / train.OUT).net
    middle = (editor.net.unet.conv_in.weight + parent_editor.net.unet.conv_in.weight) / 2
    torch.testing.assert_close(averaged.unet.conv_in.weight, middle, rtol=0, atol=1e-3 * float(change))
    new_row = editor.net.table.index("segment")
    assert torch.equal(averaged.table.v[new_row], editor.net.table.v[new_row]), "the start has no row for a new task"
