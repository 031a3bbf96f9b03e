"""The command line with an editor that changes red by an amount that depends on the task."""

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit import cli
from emuedit.editing.api import Editor
from emuedit.editor import package_folder
from emuedit.editor.sampling_options import Edited
from emuedit.editor.settings import EditSettings
from emuedit.name_hints import RENAMED
from tests.red_editor import RedSampler, SampleCall, WordPredictor


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a picture and without a tracking store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Image.new("RGB", (20, 12), (50, 100, 150)).save(tmp_path / "in.png")
    return tmp_path


@pytest.fixture
def sampler(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> RedSampler:
    """The sampler behind `models/editor`, which is otherwise a package as training leaves it."""
    from emuedit.editor import sampling

    red = RedSampler()
    monkeypatch.setattr(sampling, "load", lambda folder, runtime: red)
    monkeypatch.setattr("emuedit.predictor.task_predictor.load", lambda folder, device: WordPredictor())
    (workspace / "models/editor").mkdir(parents=True)
    (workspace / "models/router").mkdir()
    (workspace / "models/editor/model_index.json").write_text("{}")
    return red


def test_edit_writes_the_picture_and_says_what_was_done(sampler: RedSampler, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edit", "in.png", "make it red"]) == 0
    output = capsys.readouterr()
    assert '"make it red": local (50%) or remove (40%); used local; --task remove selects the other' in output.out
    assert "in-edited.png: 20 x 12" in output.out
    assert "models/editor" in output.out
    assert "editing: 20/20 steps, 100%" in output.err
    edited = np.array(Image.open("in-edited.png"))
    assert edited.shape == (12, 20, 3)
    assert np.abs(edited[..., 0].astype(int) - (50 + 64)).max() <= 1
    assert (edited[..., 1:] == (100, 150)).all()


def test_a_text_that_asks_for_no_edit_is_refused_and_a_named_task_forces_it(
    sampler: RedSampler, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "what is the weather in Paris?"
    assert cli.main(["edit", "in.png", "make it red", text]) == 2
    error = capsys.readouterr().err
    assert f"want an instruction to edit the image, got '{text}'" in error
    assert "nearest tasks are local (50%), remove (40%)" in error
    assert "--task" in error
    assert not Path("in-edited.png").exists()
    assert sampler.calls == [], "nothing is edited before all instructions are understood"
    assert cli.main(["edit", "in.png", text, "--task", "remove"]) == 0
    assert [call.task for call in sampler.calls] == ["remove"]


def test_an_instruction_that_the_text_encoder_cuts_is_reported(sampler: RedSampler, capsys: pytest.CaptureFixture[str]) -> None:
    text = "please " * 44 + "make it red"
    assert cli.main(["edit", "in.png", "make it red", text]) == 0
    error = capsys.readouterr().err
    assert "emuedit: the instruction 'please please" in error
    assert "make it red' is truncated to the text encoder's 40 tokens; shorten it" in error
    assert error.count("is truncated") == 1
    assert len(sampler.calls) == 2


def test_every_setting_is_an_option(sampler: RedSampler) -> None:
    options = "--steps 3 --image-guidance-scale 1.2 --guidance-scale 4 --guidance-rescale .7 --preserve .5 --change-threshold 0"
    options += " --against-reconstruction 0 --resolution 512 --crop 1 --composite 0 --guidance-from .1 --guidance-to .8"
    options += " --border-px 3 --background-threshold .2"
    assert cli.main(["edit", "in.png", "make it red", *options.split(), "--seed", "7"]) == 0
    expected = EditSettings(
        steps=3,
        image_guidance_scale=1.2,
        guidance_scale=4.0,
        guidance_from=0.1,
        guidance_to=0.8,
        guidance_rescale=0.7,
        preserve=0.5,
        composite=0,
        border_px=3,
        change_threshold=0.0,
        background_threshold=0.2,
        against_reconstruction=0,
        resolution=512,
        crop=1,
        seed=7,
    )
    assert sampler.calls == [SampleCall("make it red", "local", expected, 7)]
    assert expected.model_fields_set == set(EditSettings.model_fields)


def test_turns_follow_each_other(sampler: RedSampler, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edit", "in.png", "make it red", "remove it", "-o", "out.png", "--keep-turns", "--seed", "7"]) == 0
    assert [(call.instruction, call.task, call.seed) for call in sampler.calls] == [
        ("make it red", "local", 7),
        ("remove it", "remove", 8),
    ]
    assert re.search(r'"remove it": remove \(90%\); .* -> out-2.png', capsys.readouterr().out)
    assert Path("out-2.png").read_bytes() == Path("out.png").read_bytes() != Path("out-1.png").read_bytes()
    reds = [np.array(Image.open(name))[0, 0, 0].item() for name in ("out-1.png", "out-2.png")]
    assert np.allclose(reds, [50 + 64, 50 + 64 - 32], atol=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["out-1.png", "-o", "out.png", "--keep-turns"], "out-1.png is the image itself; name another file"),
        (["in.png", "-o", "out.png", "--mask", "out.png"], "want a file for each output, got out.png twice"),
        (["in.png", "-o", "out.png", "--keep-turns", "--mask", "out-1.png"], "want a file for each output, got out-1.png twice"),
    ],
)
def test_no_output_replaces_the_input_or_another_output(
    options: list[str], message: str, sampler: RedSampler, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out-1.png").write_bytes(Path("in.png").read_bytes())
    assert cli.main(["edit", options[0], "make it red", *options[1:]]) == 2
    assert message in capsys.readouterr().err
    assert not sampler.calls
    assert Path("out-1.png").read_bytes() == Path("in.png").read_bytes()
    assert not Path("out.png").exists()


def test_the_task_can_be_given(sampler: RedSampler, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edit", "in.png", "make it red", "--task", "remove"]) == 0
    assert '"make it red": remove, as given' in capsys.readouterr().out
    assert cli.main(["edit", "in.png", "make it red", "--task", "dance"]) == 2
    assert "want one of the tasks local, remove; got 'dance'" in capsys.readouterr().err


def test_settings_are_those_the_editor_was_evaluated_with(sampler: RedSampler) -> None:
    Path("params.yaml").write_text("evaluation: {n_edits: 4, settings: {steps: 9, guidance_scale: 2.5}}\n")
    assert cli.main(["edit", "in.png", "make it red"]) == 0
    assert sampler.calls[0].settings == EditSettings(steps=9, guidance_scale=2.5)
    Path("models/settings.json").write_text('{"steps": 5}')
    assert cli.main(["edit", "in.png", "make it red", "--guidance-scale", "3"]) == 0
    assert sampler.calls[1].settings == EditSettings(steps=5, guidance_scale=3.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.png", " "], "want an instruction"),
        (["in.png", "x", "--steps", "0"], "steps: Input should be greater than or equal to 1, got 0"),
        (["in.png", "x", "--change-threshold", "-1"], "change_threshold: Input should be greater than or equal to 0, got -1"),
        (["in.png", "x", "--preserve", "2"], "preserve: Input should be less than or equal to 1, got 2"),
        (["in.png", "x", "--guidance-rescale", "-1"], "guidance_rescale: Input should be greater than or equal to 0"),
        (["in.png", "x", "-o", "in.png"], "is the image itself"),
        (["in.png", "x", "-o", "no/out.png"], "want a folder to write to"),
        (["in.png", "x", "-o", "/proc/out.png"], "want a folder that can be written, got /proc: "),
        (["in.png", "x", "-o", "out.xyz"], "want an output file that ends in .png, .jpg"),
        (["in.png", "x", "--mask", "mask.xyz"], "want an output file that ends in .png, .jpg"),
        (["in.png", "x", "--session", "no/session.json"], "want a folder to write to"),
        (["in.png", "x", "--session", "in.png"], "in.png is the image itself; name another file\n"),
        (["none.png", "x"], "want an image, got none.png: No such file"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    sampler: RedSampler, workspace: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = Path("in.png").read_bytes()
    files = sorted(workspace.iterdir())
    assert cli.main(["edit", *words]) == 2
    assert message in capsys.readouterr().err
    assert Path("in.png").read_bytes() == before
    assert sorted(workspace.iterdir()) == files
    assert not sampler.calls


@pytest.mark.parametrize("option", [name for name in RENAMED if name.startswith("--") and name != "--at-once"])
def test_an_option_of_an_earlier_version_names_the_present_one(
    sampler: RedSampler, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    for words in ([option, "1"], [f"{option}=1"]):
        assert cli.main(["edit", "in.png", "make it red", *words]) == 2
        assert f"{option} is now {RENAMED[option]}" in capsys.readouterr().err
    assert RENAMED[option].removeprefix("--").replace("-", "_") in EditSettings.model_fields


def test_a_replay_is_checked_before_anything_is_edited(sampler: RedSampler, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edit", "in.png", "make it red", "--session", "s.json"]) == 0
    sampler.calls.clear()
    for option, name, message in (
        ("--sheet", "sheet.txt", "want an output file that ends in .png, .jpg"),
        ("--sheet", "no/sheet.png", "want a folder to write to"),
        ("--animation", "turns.mp4", "want an output file that ends in .gif, .webp, .png; got turns.mp4"),
    ):
        assert cli.main(["replay", "s.json", "in.png", option, name]) == 2
        assert message in capsys.readouterr().err
    assert not sampler.calls


def test_a_full_disk_is_one_line(
    sampler: RedSampler, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is there; only what was asked for besides it is not."""

    def write_text(file: Path, *arguments: Any, **options: Any) -> int:
        raise OSError(28, "No space left on device")  # as `write` does, which does not know the name

    monkeypatch.setattr(Path, "write_text", write_text)
    assert cli.main(["edit", "in.png", "make it red", "--session", "s.json"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "emuedit: s.json: No space left on device"
    assert Path("in-edited.png").exists()


def test_names_of_files_that_are_no_text_are_printed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, "ascii"))
    monkeypatch.setattr(cli, "main", lambda: print("Stra\xdfe \udcff.png: 20 x 12"))
    monkeypatch.setattr(cli, "run_and_exit", lambda main: (main(), sys.stdout.flush()))
    cli.console_main()
    assert stream.getvalue() == b"Stra\\xdfe \\udcff.png: 20 x 12\n"


def test_the_picture_is_overwritten_when_that_is_allowed(sampler: RedSampler) -> None:
    before = Path("in.png").read_bytes()
    assert cli.main(["edit", "in.png", "make it red", "-o", "in.png", "--overwrite"]) == 0
    assert Path("in.png").read_bytes() != before


def test_without_a_model_the_error_says_how_to_get_one(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edit", "in.png", "make it red"]) == 2
    assert "run `uv run retrain` or name a model" in capsys.readouterr().err
    assert sorted(path.name for path in workspace.iterdir()) == ["in.png"]
    (workspace / "odd").mkdir()
    assert cli.main(["edit", "in.png", "make it red", "--model", "odd"]) == 2
    assert "want a folder with editor/model_index.json, got odd with []" in capsys.readouterr().err


def test_a_package_is_found_from_its_editor_folder(workspace: Path) -> None:
    (workspace / "editor").mkdir()
    (workspace / "editor/model_index.json").write_text("{}")
    assert package_folder.find_package(workspace) == package_folder.find_package(workspace / "editor") == workspace


def test_help_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["edit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in EditSettings.model_fields.values():
        assert " ".join((field.description or "missing").split()) in text
    assert isinstance(Editor.__doc__, str)


def test_a_session_is_saved_and_made_again(sampler: RedSampler, capsys: pytest.CaptureFixture[str]) -> None:
    sampler.fingerprint = "abc"  # type: ignore[attr-defined]
    words = ["edit", "in.png", "make it red", "remove it", "-o", "out.png", "--session", "session.json", "--seed", "3"]
    assert cli.main(words) == 0
    options = ["-o", "again.png", "--sheet", "sheet.png", "--animation", "turns.gif"]
    assert cli.main(["replay", "session.json", "in.png", *options]) == 0
    assert "again.png: 2 turns" in capsys.readouterr().out
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()
    assert [call.seed for call in sampler.calls] == [3, 4, 3, 4]
    with Image.open("turns.gif") as animation, Image.open("sheet.png") as sheet:
        assert animation.n_frames == 3  # type: ignore[attr-defined]
        assert sheet.width > 3 * 20
    assert cli.main(["replay", "session.json", "out.png", "-o", "other.png"]) == 2
    assert "got another one; allow it with --any-image" in capsys.readouterr().err


def test_the_mask_is_white_where_either_turn_changed_a_pixel(sampler: RedSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    rectangles = iter([(slice(0, 4), slice(2, 9)), (slice(6, 10), slice(8, 15))])

    def sample(images: torch.Tensor, *arguments: Any) -> Edited:
        changed = images.clone()
        changed[:, 0, *next(rectangles)] = 1
        return Edited(changed, (None,))

    monkeypatch.setattr(sampler, "sample", sample)
    assert cli.main(["edit", "in.png", "make it red", "remove it", "-o", "out.png", "--mask", "mask.png"]) == 0
    before, after, mask = (np.asarray(Image.open(name).convert("RGB")) for name in ("in.png", "out.png", "mask.png"))
    assert (before != after).any(-1).sum() == 2 * 4 * 7
    np.testing.assert_array_equal(mask == 255, (before != after).any(-1, keepdims=True).repeat(3, -1))


def test_a_folder_as_output_is_refused_before_anything_is_computed(
    sampler: RedSampler, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("results").mkdir()
    assert cli.main(["edit", "in.png", "make it red", "-o", "results"]) == 2
    assert "want an output file, got the folder results; name a file in it" in capsys.readouterr().err
    assert sampler.calls == []
