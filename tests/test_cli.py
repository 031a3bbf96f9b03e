import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit import cli
from emuedit.core import change_threshold
from emuedit.data import image_io
from emuedit.editor import package
from emuedit.editor.package import Bundle, EditSettings
from emuedit.editor.task_predictor import TaskPrediction


class FakeEditor:
    """Adds to red what the task says."""

    tasks = ("local", "remove")

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def edit(
        self, images: torch.Tensor, instructions: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], **knobs: Any
    ) -> Any:
        self.asked.append({"text": instructions[0], "task": tasks[0], "seed": seeds[0], **knobs})
        changed = images.clone()
        changed[:, 0] = (changed[:, 0] + (0.5 if tasks[0] == "local" else -0.25)).clamp(-1, 1)
        return changed


class FakeRouter:
    def predict(self, texts: Sequence[str]) -> list[TaskPrediction]:
        return [
            TaskPrediction("remove", 0.9, "local", 0.05) if "remove" in text else TaskPrediction("local", 0.5, "remove", 0.4)
            for text in texts
        ]


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEditor:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = FakeEditor()
    router = FakeRouter()
    monkeypatch.setattr(Bundle, "load", classmethod(lambda cls, folder, knobs=None: cls(made, router, knobs or EditSettings())))
    (tmp_path / "models/editor").mkdir(parents=True)
    Image.new("RGB", (20, 12), (50, 100, 150)).save(tmp_path / "in.png")
    return made


def test_edit_writes_the_picture_and_says_what_it_did(editor: FakeEditor, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edit", "in.png", "make it red"]) == 0
    said = capsys.readouterr().out
    assert '"make it red": local (50%; remove is close, choose it with --task)' in said
    assert "in-edited.png: 20 x 12" in said
    assert "models/editor" in said
    out = np.array(Image.open("in-edited.png"))
    assert out.shape == (12, 20, 3)
    assert np.abs(out[..., 0].astype(int) - (50 + 64)).max() <= 1
    assert (out[..., 1:] == (100, 150)).all()


def test_turns_follow_each_other(editor: FakeEditor, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["edit", "in.png", "make it red", "remove it", "-o", "out.png", "--keep-turns", "--seed", "7"]
    how = "--steps 3 --image-guidance 1.2 --text-guidance 4 --rescale .7 --hold .5 --alpha 0"
    assert cli.main([*words, *how.split()]) == 0
    assert [(one["text"], one["task"]) for one in editor.asked] == [("make it red", "local"), ("remove it", "remove")]
    knobs = [tuple(one[key] for key in ("steps", "s_I", "s_T", "phi", "hold")) for one in editor.asked]
    assert knobs == [(3, 1.2, 4.0, 0.7, 0.5)] * 2
    assert editor.asked[0]["seed"] == 7
    assert '"remove it": remove (90%) -> out-2.png' in capsys.readouterr().out
    assert Path("out-2.png").read_bytes() == Path("out.png").read_bytes() != Path("out-1.png").read_bytes()


def test_the_task_can_be_told(editor: FakeEditor, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edit", "in.png", "make it red", "--task", "remove"]) == 0
    assert '"make it red": remove, as told' in capsys.readouterr().out
    assert cli.main(["edit", "in.png", "make it red", "--task", "dance"]) == 2
    assert "want a task of local, remove; got 'dance'" in capsys.readouterr().err


def test_knobs_are_those_the_editor_was_measured_with(editor: FakeEditor) -> None:
    Path("params.yaml").write_text("evaluation: {steps: 9, s_T: 2.5, n_edits: 4}\n")
    assert cli.main(["edit", "in.png", "make it red"]) == 0
    assert {key: editor.asked[0][key] for key in ("steps", "s_I", "s_T")} == {"steps": 9, "s_I": 1.5, "s_T": 2.5}
    assert EditSettings().alpha == change_threshold.ALPHA


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.png", " "], "want an instruction"),
        (["in.png", "x", "--steps", "0"], "want --steps from 1 to 1000, got 0"),
        (["in.png", "x", "--alpha", "-1"], "want --alpha of 0 or more"),
        (["in.png", "x", "--hold", "2"], "want --hold from 0 to 1"),
        (["in.png", "x", "--rescale", "-1"], "want --rescale from 0 to 1"),
        (["in.png", "x", "-o", "in.png"], "is the picture itself"),
        (["in.png", "x", "-o", "no/out.png"], "want a folder to write to"),
        (["in.png", "x", "-o", "out.xyz"], "want an output file such as out.png"),
        (["none.png", "x"], "want a picture, got none.png: No such file"),
    ],
)
def test_what_cannot_be_done_is_said(
    editor: FakeEditor, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = Path("in.png").read_bytes()
    assert cli.main(["edit", *words]) == 2
    assert message in capsys.readouterr().err
    assert Path("in.png").read_bytes() == before


def test_the_picture_is_overwritten_when_asked(editor: FakeEditor) -> None:
    before = Path("in.png").read_bytes()
    assert cli.main(["edit", "in.png", "make it red", "-o", "in.png", "--overwrite"]) == 0
    assert Path("in.png").read_bytes() != before


def test_without_a_model_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Image.new("RGB", (20, 12)).save("in.png")
    assert cli.main(["edit", "in.png", "make it red"]) == 2
    assert "run `uv run retrain` or name a --model" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]
    (tmp_path / "odd").mkdir()
    assert cli.main(["edit", "in.png", "make it red", "--model", "odd"]) == 2
    assert "want a folder with editor/model_index.json, got odd with []" in capsys.readouterr().err


def test_the_champion_comes_first(editor: FakeEditor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emuedit.tracking import registry

    Path("mlflow.db").touch()
    monkeypatch.setattr(registry, "download_version", lambda uri: tmp_path / uri.split("@")[1])
    monkeypatch.setattr(registry, "version_at", lambda alias: None)
    assert cli.resolve(None) == (Path("models"), "models/editor")
    monkeypatch.setattr(registry, "version_at", lambda alias: object())
    assert cli.resolve(None) == (tmp_path / "champion", "models:/emuedit-editor@champion")
    assert cli.resolve("models:/emuedit-editor@challenger") == (tmp_path / "challenger", "models:/emuedit-editor@challenger")


def test_a_bundle_is_found_from_its_editor(tmp_path: Path) -> None:
    (tmp_path / "editor").mkdir()
    (tmp_path / "editor/model_index.json").write_text("{}")
    assert package.home(tmp_path) == package.home(tmp_path / "editor") == tmp_path


def encoded(picture: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **how)
    return stream.getvalue()


def test_pictures_of_many_kinds() -> None:
    grey = image_io.read_image(encoded(Image.new("L", (9, 8), 77)))
    assert (grey.pixels == 77).all()
    assert (grey.pixels.shape, grey.notes) == ((8, 9, 3), ())
    deep = image_io.read_image(encoded(Image.fromarray(np.full((8, 9), 257 * 100, np.uint16))))
    assert (deep.pixels == 100).all()
    assert deep.notes == ("16 bits made 8",)
    clear = image_io.read_image(encoded(Image.new("RGBA", (9, 8), (200, 0, 0, 0))))
    assert (clear.pixels == 255).all()
    assert clear.notes == ("transparency laid on white",)
    full = image_io.read_image(encoded(Image.new("RGBA", (9, 8), (200, 0, 0, 255))))
    assert (full.pixels == (200, 0, 0)).all()
    assert full.notes == ()
    assert image_io.read_image(encoded(Image.new("P", (9, 8)))).pixels.shape == (8, 9, 3)
    assert image_io.read_image(encoded(Image.new("CMYK", (9, 8)), "JPEG")).notes == ("CMYK made RGB, without its colour profile",)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image_io.read_image(encoded(Image.new("RGB", (9, 8)), "JPEG", exif=exif))
    assert (turned.pixels.shape, turned.notes) == ((9, 8, 3), ("turned as its EXIF data says",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "which is none that can be read"),
        (b"", "which is none that can be read"),
        (encoded(Image.effect_noise((64, 64), 50))[:900], "the picture is damaged"),
        (encoded(Image.new("RGB", (7, 20))), "want at least 8 pixels a side, got 7 x 20"),
        (encoded(Image.new("1", (5000, 5000))), "want at most 16777216 pixels, got 5000 x 5000"),
        (encoded(Image.new("F", (9, 8)), "TIFF"), "want 8 or 16 bits a value, got 32"),
        (
            encoded(Image.new("RGB", (9, 8)), "GIF", save_all=True, append_images=[Image.new("RGB", (9, 8), "red")]),
            "got 2 frames",
        ),
    ],
)
def test_pictures_that_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(image_io.ImageError, match=message):
        image_io.read_image(content)
