"""`emuedit learn` and `emuedit tasks` with a tiny editor, as a user has them."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit import EditError, Editor, cli
from emuedit.data import example_folder, image_io
from emuedit.data.publish import write_summary
from emuedit.editing import learn_task, task_commands
from emuedit.editing.learn_task import LearnError, check_new_name, settings_for
from emuedit.editor import task_pack
from emuedit.editor.task_pack import TaskPackError
from emuedit.tasks import ALL_TASKS
from emuedit.training import task_inversion
from emuedit.training.loss import ConditionDropout, LossWeights
from tests.editor.tiny_pipelines import save_editor

LEARN = ["learn", "examples", "--name", "darken", "--instruction", "darken it", "--steps", "3", "--rank", "2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_editor("toy", root / "editor", ALL_TASKS[:3])  # the loss of each is computed as a start
    return root


@pytest.fixture
def workspace(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an editor, six examples and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(models, tmp_path / "models")
    random = np.random.default_rng(0)
    for n in range(6):
        pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
        for part, picture in (("before", pixels), ("after", pixels // 2)):
            (tmp_path / "examples" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "examples" / part / f"{n}.png")
    Image.fromarray(pixels).save(tmp_path / "in.png")
    return tmp_path


@pytest.mark.slow
def test_a_learned_task_has_a_pack_a_card_and_a_sheet_and_edits(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = torch.cat([weight.flatten() for weight in Editor.load("models").sampler.net.parameters()])
    assert cli.main(LEARN) == 0
    assert "learned from 5 examples, 3 steps, loss " in capsys.readouterr().out
    folder = workspace / "models/packs"
    assert sorted(file.name for file in folder.iterdir()) == ["darken.md", "darken.png", "darken.safetensors"]
    assert "on held-out examples" in (folder / "darken.md").read_text(encoding="utf-8")
    assert image_io.read_image(folder / "darken.png").pixels.shape[1] > 128
    pack = task_pack.load(folder / "darken.safetensors")
    assert (pack.name, pack.n_examples, pack.instructions) == ("darken", 5, ("darken it",))
    assert pack.adapter is not None
    assert pack.adapter.rank == 2
    editor = Editor.load("models")
    assert editor.sampler.inverted_tasks == ("darken",)
    now = [weight.flatten() for name, weight in editor.sampler.net.named_parameters() if name != "table.v"]
    trained = editor.sampler.net.table.v[:-1].flatten()
    assert torch.equal(torch.cat([*now, trained]).sort().values, weights.sort().values), "nothing but the new row may differ"
    edit = ["edit", "in.png", "darken it", "--task", "darken", "--steps", "1"]
    assert cli.main([*edit, "-o", "out.png"]) == 0


def test_examples_have_the_size_at_which_the_editor_edits(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDXL editor that was trained at 512 px never saw the 1024 px of its base model."""
    editor = Editor.load("models")
    editor.settings = editor.settings.with_changes({"resolution": 25})
    sizes: list[tuple[int, ...]] = []

    def stop(sampler: object, before: np.ndarray, *arguments: object) -> None:
        sizes.append(before.shape)
        raise KeyboardInterrupt

    monkeypatch.setattr(learn_task, "encode_split", stop)
    examples = example_folder.read_examples(workspace / "examples", ["darken it"])
    with pytest.raises(KeyboardInterrupt):
        learn_task.learn(editor, examples, settings_for("darken", 6, Path("models/editor")), workspace / "out")
    assert sizes == [(6, 24, 24, 3)]


@pytest.mark.slow
def test_the_embedding_alone_is_learned_at_rank_zero(workspace: Path) -> None:
    assert cli.main([*LEARN[:-1], "0"]) == 0
    assert task_pack.load(workspace / "models/packs/darken.safetensors").adapter is None


@pytest.mark.slow
def test_packs_are_listed_shown_removed_and_added_again(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*LEARN, "-o", "elsewhere"]) == 0
    assert "darken" not in Editor.load("models").tasks
    assert cli.main(["tasks", "add", "elsewhere/darken.safetensors"]) == 0
    assert "the task predictor cannot choose it" in capsys.readouterr().out
    assert cli.main(["tasks", "list"]) == 0
    table = capsys.readouterr().out
    assert "remove        training    erase an object" in table
    assert "darken        pack, r 2   custom task" in table
    assert cli.main(["tasks", "show", "darken"]) == 0
    description = capsys.readouterr().out
    assert "instructions: 'darken it'" in description
    assert "adapter: rank 2" in description
    assert cli.main(["tasks", "add", "elsewhere/darken.safetensors"]) == 2
    assert "got 'darken', which the editor already has" in capsys.readouterr().err
    assert cli.main(["tasks", "remove", "darken"]) == 0
    assert cli.main(["tasks", "remove", "darken"]) == 2
    assert "want a task pack, got 'darken'; packs in models/packs: none" in capsys.readouterr().err


@pytest.mark.slow
def test_a_pack_for_another_editor_is_refused_and_left_out_with_a_word(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(LEARN) == 0
    editor = Editor.load("models")
    editor.remove_task("darken")
    with torch.no_grad():
        editor.sampler.net.unet.conv_in.bias += 1
    shutil.rmtree(workspace / "models/editor")
    editor.sampler.save(workspace / "models/editor")
    capsys.readouterr()
    assert "darken" not in Editor.load("models").tasks
    assert "models/packs/darken.safetensors was skipped: want a pack for the editor" in capsys.readouterr().err
    shutil.move(workspace / "models/packs/darken.safetensors", workspace / "darken.safetensors")
    assert cli.main(["tasks", "add", "darken.safetensors"]) == 2
    assert "learn it again on this editor" in capsys.readouterr().err
    assert not (workspace / "models/packs/darken.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "remove"], "want a new name, got 'remove'; the editor has the names local, remove"),
        (["--name", "My Task"], "want a name of at most 64 lower-case letters, digits and _"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_is_computed(
    options: list[str], message: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*LEARN, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (workspace / "models/packs").exists()


def test_a_name_of_the_task_predictor_is_refused_and_its_pack_changes_nothing(workspace: Path, tmp_path: Path) -> None:
    """Such a pack could be learned, and then no editor with it could be loaded."""
    editor = Editor.load("models")
    v = torch.zeros(editor.sampler.net.table.d_v)
    editor.predictor = SimpleNamespace(labels=("local", "no_edit"), new_tasks=("darken",))  # type: ignore[assignment]
    for name in ("no_edit", "darken"):
        with pytest.raises(LearnError, match=f"want a new name, got '{name}'"):
            check_new_name(name, editor)
        task_pack.save(
            task_pack.TaskPack(name, v, editor.sampler.fingerprint, 1, {}, None, ("x",)), tmp_path / "pack.safetensors"
        )
        with pytest.raises(TaskPackError, match="which the editor already has"):
            editor.add_pack(tmp_path / "pack.safetensors")
        assert name not in editor.tasks


def test_a_pack_is_used_by_its_own_editor_wherever_that_was_loaded_from(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pack of the workspace that fits another editor is not mentioned."""
    shutil.copytree("models", "other")
    editor = Editor.load("other")
    for name, base in (("fitting", editor.sampler.fingerprint), ("unfitting", "0" * 16)):
        pack = task_pack.TaskPack(name, torch.zeros(editor.sampler.net.table.d_v), base, 1, {}, None, ())
        (workspace / "models/packs").mkdir(exist_ok=True)
        task_pack.save(pack, workspace / f"models/packs/{name}.safetensors")
    capsys.readouterr()
    assert "fitting" in Editor.load("other").tasks
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_one_example_is_enough_and_the_sheet_says_on_what_it_was_made(workspace: Path) -> None:
    for file in (*(workspace / "examples/before").glob("[1-5].png"), *(workspace / "examples/after").glob("[1-5].png")):
        file.unlink()
    assert cli.main(LEARN) == 0
    assert "on the training examples" in (workspace / "models/packs/darken.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 5, 6])
def test_start_and_best_step_are_not_chosen_at_a_single_timestep(
    n: int, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timesteps: list[int] = []
    loss_parts = task_inversion.loss_parts

    def record(*arguments: Any) -> Any:
        timesteps.extend(arguments[3].t.tolist())
        return loss_parts(*arguments)

    monkeypatch.setattr(task_inversion, "loss_parts", record)
    monkeypatch.setattr(learn_task, "_draw_sheet", lambda *arguments: None)
    editor = Editor.load("models")
    examples = example_folder.read_examples(workspace / "examples", ["darken it"])[:n]
    settings = settings_for("darken", n, Path("models/editor"), steps=0, adapter_rank=0)
    learn_task.learn(editor, examples, settings, workspace / "out")
    assert {8 * t // editor.sampler.parts.scheduler.config.num_train_timesteps for t in timesteps} == set(range(8))


def put_pack(name: str, base: str, file: Path) -> bytes:
    """Write a pack without adapter for the editor `base`; returns the file's bytes."""
    d_v = Editor.load("models").sampler.net.table.d_v
    task_pack.save(task_pack.TaskPack(name, torch.zeros(d_v), base, 1, {}, None, ("darken it",)), file)
    return file.read_bytes()


def test_a_pack_of_another_editor_is_not_replaced(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The editor ignores it, so its name seems to be free."""
    packs = workspace / "models/packs"
    foreign = put_pack("darken", "0" * 16, packs / "darken.safetensors")
    assert cli.main(LEARN) == 2
    assert "darken.safetensors is the pack of another editor, 0000000000000000; this one is" in capsys.readouterr().err
    put_pack("darken", Editor.load("models").sampler.fingerprint, workspace / "new.safetensors")
    assert cli.main(["tasks", "add", "new.safetensors"]) == 2
    assert "choose another name, or move that file away" in capsys.readouterr().err
    assert [file.name for file in packs.iterdir()] == ["darken.safetensors"]
    assert (packs / "darken.safetensors").read_bytes() == foreign
    (packs / "darken.safetensors").write_bytes(b"x")
    editor = Editor.load("models")
    with pytest.raises(TaskPackError, match="is not a task pack; choose another name"):
        task_commands.install(workspace / "new.safetensors", editor)
    assert "darken" not in editor.tasks


def test_a_task_is_removed_from_the_packs_only(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = workspace / "models/packs/darken.safetensors"
    put_pack("darken", "0" * 16, pack)
    (workspace / "darken").write_text("notes")
    put_pack("other", "0" * 16, workspace / "models/other.safetensors")
    assert cli.main(["tasks", "show", "darken"]) == 0
    assert "models/packs/darken.safetensors: darken" in capsys.readouterr().out
    assert cli.main(["tasks", "remove", "darken"]) == 0
    assert not pack.exists()
    for name in ("darken", "../other", "models/other.safetensors"):
        assert cli.main(["tasks", "remove", name]) == 2
        assert f"want a task pack, got {name!r}; packs in models/packs: none" in capsys.readouterr().err
    assert (workspace / "darken").read_text() == "notes"
    assert (workspace / "models/other.safetensors").exists()


@pytest.mark.slow
def test_a_broken_file_among_the_packs_is_skipped_and_each_pack_is_read_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("models", "other")
    fingerprint = Editor.load("other").sampler.fingerprint
    for name, base in (("fitting", fingerprint), ("unfitting", "0" * 16)):
        put_pack(name, base, workspace / f"models/packs/{name}.safetensors")
    (workspace / "models/packs/bad.safetensors").write_bytes(b"x")
    read: list[str] = []
    load = task_pack.load
    monkeypatch.setattr(task_pack, "load", lambda file: (read.append(Path(file).stem), load(file))[1])
    capsys.readouterr()
    for source in ("other", "models"):
        read.clear()
        assert Editor.load(source).sampler.inverted_tasks == ("fitting",)
        assert read.count("fitting") == 1
        assert "packs/bad.safetensors was skipped: " in capsys.readouterr().err
    read.clear()
    Editor.load("other")
    assert read == ["fitting"], "of the packs of other editors only the header is read"


def test_the_loss_is_that_of_the_editors_own_training_where_it_is_recorded(tmp_path: Path) -> None:
    assert settings_for("darken", 10, tmp_path).loss_weights == LossWeights()
    weights = LossWeights(timestep_power=(0.5, 1.0), mask_balance=1.0)
    recorded = {"loss_weights": weights.model_dump(mode="json"), "dropout": {"text": 0.2}, "min_snr_gamma": 5.0, "lr": 1.0}
    write_summary(tmp_path, "train", "key", recorded, {})
    settings = settings_for("darken", 10, tmp_path, steps=7)
    assert settings.loss_weights == weights
    assert (settings.dropout, settings.min_snr_gamma) == (ConditionDropout(text=0.2), 5.0)
    assert (settings.n_examples, settings.n_held_out, settings.steps) == (10, 10, 7)


def test_only_a_task_of_a_pack_can_be_removed(workspace: Path) -> None:
    editor = Editor.load("models")
    with pytest.raises(EditError, match="want a task added by a pack, got 'remove'; added tasks: none"):
        editor.remove_task("remove")
    with pytest.raises(LearnError, match="want a new name"):
        check_new_name("remove", editor)
