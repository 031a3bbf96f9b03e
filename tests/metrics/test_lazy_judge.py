"""The models of a folder's judge are loaded when outputs are judged, on the device of the edits, and freed after a preview."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark, training_preview
from emuedit.metrics.judge_file import JudgeFile
from emuedit.metrics.photo_benchmark import write_judge
from emuedit.promotion import comparison


class StubScorer:
    """CLIP or DINO: a unit vector per image and text."""

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """The mean colour, [B, 3]."""
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Another vector for each text, [B, 3]."""
        return torch.eye(3)[[ord(text[0]) % 3 for text in texts]]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """(name, device, weak reference to the model) of each load."""
    calls: list[tuple[str, str, Any]] = []

    def load(name: str, device: str) -> StubScorer:
        scorer = StubScorer()
        calls.append((name, device, weakref.ref(scorer)))
        return scorer

    monkeypatch.setattr("emuedit.models.clip.load", load)
    monkeypatch.setattr("emuedit.models.dino.load", load)
    monkeypatch.setattr("emuedit.runtime._present_devices", lambda: ("cuda", "cpu"))
    monkeypatch.setattr("emuedit.runtime._auto_dtype", lambda device: "float32")
    return calls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    rows = "".join(f"a.png,local,a,b,c,{split}\n" for split in ("train", "held_out"))
    (tmp_path / "edits.csv").write_text(f"image,task,instruction,input_caption,output_caption,split\n{rows}")
    write_judge(tmp_path, JudgeFile(clip="a/b", dino="c/d", size=16))
    return tmp_path


@pytest.mark.slow
def test_the_judge_is_loaded_on_the_device_of_the_edits_when_they_are_judged(folder: Path, loads: list[Any]) -> None:
    edits = benchmark.load(str(folder), "cuda:1")("local", "held_out", 0, 1)
    assert (len(edits.instructions), edits.before.shape, edits.exact) == (1, (1, 16, 16, 3), None)
    assert loads == []
    for _ in range(2):
        assert not edits.judge(edits.before).success.any()
    assert [(name, device) for name, device, _ in loads] == [("a/b", "cuda:1"), ("c/d", "cuda:1")]


def is_loaded(loads: list[Any]) -> bool:
    gc.collect()
    return any(reference() is not None for _, _, reference in loads)


@pytest.mark.slow
def test_a_preview_frees_its_judge(folder: Path, tmp_path: Path, loads: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between previews, the training needs the memory."""
    monkeypatch.setattr(training_preview, "make_edits", lambda sampler, edits, *_: np.array(edits.before))
    preview = training_preview.preview(str(folder), ("local",), 1, EditSettings(), tmp_path / "previews", "cuda:1")
    assert loads == []
    preview.check()
    assert (len(loads), is_loaded(loads)) == (2, False)
    for step in (1, 2):
        assert preview(None, step)["success.local"] == 0.0  # type: ignore[arg-type]
    assert (len(loads), is_loaded(loads)) == (6, False)
    assert {device for _, device, _ in loads} == {"cuda:1"}


def test_the_speed_of_editors_is_measured_without_a_judge(
    folder: Path, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    load = benchmark.load
    monkeypatch.setattr(benchmark, "load", lambda source, device: (devices.append(device), load(source, device))[1])
    monkeypatch.setattr(comparison.Systems, "emuedit", lambda _, edits, seeds: (edits.before, [edits.task]))
    conditions = comparison.ComparisonConditions("evaluation", str(folder), ("local",), 1, EditSettings(), device="cpu")
    assert len(comparison.measure_speed([folder], conditions)) == 1
    assert devices == ["cpu"]
    assert loads == []
