import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.data.publish import read_summary, write_summary
from emuedit.data.shards import ShardError
from emuedit.editor import checkpoint, sampling
from emuedit.editor.checkpoint import FrozenParts
from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark
from emuedit.models import objective, text_to_image
from emuedit.stages import MEMORY_ENV, describe, inversion
from emuedit.stages.inversion import InversionError, InversionParams
from emuedit.training.inversion_examples import encode_examples, select_examples
from emuedit.training.loss import ConditionDropout
from emuedit.training.task_inversion import LearnedTask, invert, start_embeddings
from tests.stages.workspace import Workspace, check_stop_message, load_params, toy_world

SMALL: dict[str, Any] = {
    "steps": 12, "batch_size": 4, "n_examples": 4, "n_held_out": 2, "eval_every_steps": 4, "dtype": "float32", "device": "cpu",
}  # fmt: skip
TASKS = ("local", "remove", "texture")
ONE_STEP = EditSettings(steps=1, image_guidance_scale=1.0, guidance_scale=1.0)

pytestmark = [pytest.mark.usefixtures("no_mlflow"), pytest.mark.timeout(300)]


def make_params(**changes: object) -> InversionParams:
    return load_params(InversionParams, "inversion", **SMALL | changes)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a random editor of three tasks, whose new weights, zero at the start of a training, are not zero."""
    root = tmp_path_factory.mktemp("root")
    base_model = text_to_image.load(toy_world()["base_model"])
    torch.manual_seed(0)
    net = checkpoint.from_base_model(base_model, 8, TASKS)
    with torch.no_grad():
        for weight in (net.unet.conv_in.weight, net.unet.class_embedding.weight):
            weight += 0.05 * torch.randn_like(weight)
    checkpoint.save(net, base_model.pipeline, root / inversion.EDITOR, torch.float16)
    assert write_summary(root / inversion.EDITOR, "train", "key", {}, {}).stage == "train"
    return root


@pytest.fixture
def editor(published: Path) -> EditSampler:
    return sampling.load(published / inversion.EDITOR)


def learn(editor: EditSampler, params: InversionParams, held_out: slice = slice(4, 6)) -> LearnedTask:
    """Learn the task from the first four of six edits; `held_out` are rows of the six."""
    edits = benchmark.load(params.world.benchmark)(params.task, "train", 0, 6)
    samples = encode_examples(editor, edits.before, edits.exact, edits.instructions)
    examples = select_examples(samples, torch.arange(4))
    return invert(editor, examples, select_examples(samples, torch.arange(6)[held_out]), params)


@pytest.mark.slow
def test_only_the_task_embedding_is_learned_and_its_loss_falls(editor: EditSampler) -> None:
    """Measured on the same edits, because a random editor cannot generalise, at timesteps and noise that it never saw."""
    before = {name: value.clone() for name, value in editor.net.state_dict().items()}
    tasks = editor.tasks
    learned = learn(editor, make_params(steps=6, eval_every_steps=3), slice(0, 4))
    assert editor.tasks == tasks
    for name, value in editor.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert learned.v.shape == (8,)
    assert learned.loss < learned.loss_start
    assert not torch.equal(learned.v, start_embeddings(editor)[learned.start])


@pytest.mark.slow
def test_a_pack_is_published_that_the_editor_accepts(published: Path, editor: EditSampler) -> None:
    params = make_params(task="superres", steps=2, n_held_out=1)
    summary = inversion.run(params, published)
    assert read_summary(published / inversion.OUT) == summary
    assert set(summary.shards) == {"superres.safetensors"}
    assert summary.counts == {"tasks": 1, "examples": 4, "steps": 2}
    pack = editor.add_pack(published / inversion.OUT / "superres.safetensors")
    assert (pack.name, pack.n_examples, pack.editor_fingerprint) == ("superres", 4, editor.fingerprint)
    assert pack.record["params"]["lr"] == params.lr
    edited = editor.sample(torch.zeros(1, 3, 64, 64), ["sharpen"], ["superres"], ONE_STEP).images
    assert edited.shape == (1, 3, 64, 64)
    first = (published / inversion.OUT / "superres.safetensors").read_bytes()
    inversion.run(params, published)
    assert (published / inversion.OUT / "superres.safetensors").read_bytes() == first


def test_without_a_task_the_stage_publishes_no_pack_and_reads_no_editor(tmp_path: Path) -> None:
    """A benchmark of photographs seldom has examples of a new task; the stage had to be cut out of dvc.yaml."""
    summary = inversion.run(make_params(enabled=False, task="superres"), tmp_path)
    assert (dict(summary.shards), summary.counts) == ({}, {"tasks": 0})
    assert read_summary(tmp_path / inversion.OUT) == summary
    assert describe(summary, inversion.HEADLINE) == "tasks learned: 0, from 0 examples in 0 steps"


@pytest.mark.slow
def test_an_inversion_that_ran_out_of_memory_has_smaller_passes(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params, pictures_at_once, encode = make_params(steps=1, n_examples=15, n_held_out=2), [], FrozenParts.encode
    monkeypatch.setattr(sampling, "MAX_PIXELS_PER_BATCH", 2 * 64**2)
    monkeypatch.setattr(FrozenParts, "encode", lambda parts, x: (pictures_at_once.append(len(x)), encode(parts, x))[1])
    inversion.run(params, published)
    monkeypatch.setenv(MEMORY_ENV, "1")
    inversion.run(params, published)
    learned_from, held_out, edited = [30, 30], [2, 2], [2]
    smaller = [15] * 4 + [1] * 4 + [1, 1]
    assert pictures_at_once == learned_from + held_out + edited + smaller, "15 examples, their mirrored copies, and 2 held out"
    assert "inversion: ran out of memory; retrying with 2 passes per step" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loss_is_that_of_the_editors_training_but_for_what_the_params_name(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(published / inversion.EDITOR, tmp_path / inversion.EDITOR)
    scheduler = sampling.load(published / inversion.EDITOR).parts.scheduler
    without_zero_snr = objective.on_same_betas(scheduler, (), rescale_betas_zero_snr=False)  # which min-SNR needs
    without_zero_snr.save_pretrained(tmp_path / inversion.EDITOR / "scheduler")
    recorded = {"loss_weights": {"mask_balance": 0.9}, "dropout": {"text": 0.2}, "min_snr_gamma": 5.0}
    write_summary(tmp_path / inversion.EDITOR, "train", "key", recorded, {})
    used: list[InversionParams] = []
    monkeypatch.setattr(inversion, "invert", lambda *arguments: (used.append(arguments[3]), invert(*arguments))[1])
    params = make_params(steps=0, n_examples=1, n_held_out=1)
    summary = inversion.run(params, tmp_path)
    assert used[0].loss_weights == params.loss_weights, "params.yaml names it"
    assert (used[0].dropout, used[0].min_snr_gamma) == (ConditionDropout(text=0.2), 5.0)
    assert summary.params["min_snr_gamma"] == 5.0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_terminated_process_learns_the_same_task_when_it_is_run_again(
    published: Path, make_workspace: Callable[..., Workspace]
) -> None:
    params = SMALL | {"steps": 8, "batch_size": 2, "eval_every_steps": 2, "patience": 100}
    stopped, uninterrupted = (make_workspace(name, inversion=params) for name in ("stopped", "uninterrupted"))
    for workspace in (stopped, uninterrupted):
        (workspace.folder / "models").mkdir()
        (workspace.folder / inversion.EDITOR).symlink_to(published / inversion.EDITOR)
    process = stopped.start("inversion")

    def has_begun_to_learn() -> bool:
        return any("held_out" in file.read_text() for file in stopped.scratch_files("inversion", "stats.jsonl"))

    process.wait_until(has_begun_to_learn)
    status, output = process.stop(signal.SIGTERM)
    check_stop_message("inversion", signal.SIGTERM, status, output)
    assert not (stopped.folder / inversion.OUT).exists()
    files = []
    for workspace in (stopped, uninterrupted):
        workspace.run("inversion")
        files.append(read_summary(workspace.folder / inversion.OUT).shards)
    assert len(files[0]) == 1, "the pack"
    assert files[0] == files[1]


def test_an_editor_that_is_not_published_completely_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="want a published folder"):
        inversion.run(make_params(), tmp_path)


def test_a_benchmark_without_right_results_is_an_error(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = replace(benchmark.load(make_params().world.benchmark)("superres", "train", 0, 2), exact=None)  # type: ignore[type-var]
    monkeypatch.setattr(benchmark, "load", lambda *_: lambda *_: edits)
    with pytest.raises(InversionError, match="want edits of 'superres' with reference results"):
        inversion.run(make_params(), published)


def edits_of_images(numbers: Sequence[int]) -> Any:
    """Edits of the images with these numbers, of one colour each."""
    before = np.asarray(numbers, np.uint8)[:, None, None, None].repeat(64, 1).repeat(64, 2).repeat(3, 3)
    instructions = [f"draw outline {n}" for n in range(len(numbers))]
    return SimpleNamespace(task="contour", instructions=instructions, before=before, exact=255 - before)


@pytest.mark.parametrize(
    ("numbers", "held_out"),
    [
        (range(6), [4, 5]),
        ([0, 1, 2, 0, 1, 2], [2, 5]),  # an image of three, in rows that are apart
        ([0, 0, 1, 1, 1, 2], [5]),  # image 1 is in both parts of a split by rows, and too large for what is left
        ([0, 1, 1, 1, 2, 3], [4, 5]),
        ([0, 1, 1, 1, 1, 2], [0, 5]),
    ],
)
def test_no_image_is_both_learned_from_and_held_out(
    numbers: Sequence[int], held_out: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    learned, chosen = inversion.hold_out_images(edits_of_images(numbers), 2)
    assert chosen == held_out
    assert learned == [row for row in range(6) if row not in held_out]
    message = "inversion: edits held out: 1, to learn from: 5, as edits of one image stay together\n"
    assert capsys.readouterr().out == (message if len(held_out) < 2 else "")


@pytest.mark.parametrize("numbers", [[0] * 6, [0, 0, 0, 1, 1, 1]])
def test_images_with_too_many_edits_to_hold_out_are_an_error(numbers: list[int]) -> None:
    n_images, n_edits = len(set(numbers)), 6 // len(set(numbers))
    got = f"got 6 edits of {n_images} images with {n_edits} or more each; raise inversion.n_held_out, or add other images"
    with pytest.raises(InversionError, match=f"want edits of 'contour' to hold out, at most 2 with all .*, {got}"):
        inversion.hold_out_images(edits_of_images(numbers), 2)


@pytest.mark.slow
def test_a_task_is_learned_and_its_threshold_chosen_on_different_images(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edits, rows = edits_of_images([0, 1, 2, 0, 1, 1]), [2]
    monkeypatch.setattr(benchmark, "load", lambda *_: lambda *_: edits)
    used: dict[str, Any] = {}
    monkeypatch.setattr(inversion, "invert", lambda *arguments: (used.update(batches=arguments[1:3]), invert(*arguments))[1])
    monkeypatch.setattr(inversion, "choose_change_threshold", lambda *_, **named: used.update(named))
    summary = inversion.run(make_params(steps=0, n_examples=4, n_held_out=2, flip=False), published)
    learned, held_out = (batch.instructions for batch in used["batches"])
    assert (learned, held_out) == (tuple(edits.instructions[row] for row in (0, 1, 3, 4, 5)), (edits.instructions[2],))
    assert used["instructions"] == [edits.instructions[row] for row in rows]
    assert np.array_equal(used["before"], edits.before[rows])
    assert np.array_equal(used["after"], edits.exact[rows])
    assert summary.counts["examples"] == 5


def test_the_examples_judge_has_the_device_of_the_params(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    def load(source: str, device: str) -> None:
        devices.append(device)
        raise ZeroDivisionError

    monkeypatch.setattr(benchmark, "load", load)
    with pytest.raises(ZeroDivisionError):
        inversion.run(make_params(), published)
    assert devices == ["cpu"]
