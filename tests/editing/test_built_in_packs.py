"""The packs that the stage `inversion` publishes beside the editor."""

from pathlib import Path

import pytest
import torch

from emuedit import Editor
from emuedit.editor import task_pack
from emuedit.tasks import ALL_TASKS
from tests.editor.tiny_pipelines import D_V, save_editor


@pytest.mark.slow
def test_a_pack_of_an_earlier_editor_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After `dvc repro train`, neither an edit nor `emuedit learn` worked before the stage had run."""
    monkeypatch.chdir(tmp_path)
    save_editor("toy", tmp_path / "models/editor", ALL_TASKS[:1])
    fingerprint = Editor.load("models").sampler.fingerprint
    for name, base in (("contour", "0" * 16), ("cutout", fingerprint)):
        file = tmp_path / f"models/inversion/{name}.safetensors"
        task_pack.save(task_pack.TaskPack(name, torch.zeros(D_V), base, 1, {}), file)
    capsys.readouterr()
    assert Editor.load("models").sampler.inverted_tasks == ("cutout",)
    problem = f"want a pack for the editor {fingerprint}, got one for {'0' * 16}; run the stage inversion"
    assert f"models/inversion/contour.safetensors was skipped: {problem}" in capsys.readouterr().err
