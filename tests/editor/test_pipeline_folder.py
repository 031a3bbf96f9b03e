"""The folder of an EmuEditPipeline: saved, loaded, published, and the code that its card and the docs print."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from emuedit.editor import model_card
from emuedit.editor.edit_pipeline import EmuEditPipeline
from emuedit.editor.sampling import EditSampler
from emuedit.tasks import ALL_TASKS

ROOT = Path(__file__).parents[2]
EditorFolder = Callable[[str], Path]
FAST: dict[str, Any] = {"num_inference_steps": 1, "image_guidance_scale": 1.0, "guidance_scale": 1.0, "task": "local"}
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)


@pytest.fixture
def pipe(editor_folder: EditorFolder) -> EmuEditPipeline:
    """A random editor of the toy model."""
    return EmuEditPipeline.from_pretrained(editor_folder("toy"))


@pytest.mark.slow
def test_a_loaded_pipeline_is_saved_and_loaded_again(editor_folder: EditorFolder, tmp_path: Path) -> None:
    pipe = EmuEditPipeline.from_pretrained(editor_folder("sdxl"))
    pipe.save_pretrained(tmp_path)
    again = EmuEditPipeline.from_pretrained(tmp_path)
    for pipeline in (pipe, again):
        pipeline.set_progress_bar_config(disable=True)
    assert again.tasks == pipe.tasks == ALL_TASKS
    assert again.config.force_zeros_for_empty_prompt
    assert again.task_embedding.fingerprint == pipe.task_embedding.fingerprint != ""
    files = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {
        path.relative_to(editor_folder("sdxl")).as_posix() for path in editor_folder("sdxl").rglob("*") if path.is_file()
    }
    assert {Path(file).suffix for file in files} == {".json", ".safetensors", ".md"}
    assert (tmp_path / "README.md").read_text() == (editor_folder("sdxl") / "README.md").read_text()
    outputs = [
        pipeline("make it red", PIXELS, generator=torch.Generator().manual_seed(1), output_type="np", **FAST).images
        for pipeline in (pipe, again)
    ]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.slow
def test_pickled_weights_are_not_written(pipe: EmuEditPipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="want safe_serialization=True"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)


@pytest.mark.slow
def test_a_base_model_and_an_empty_folder_are_no_editors(tmp_path: Path) -> None:
    from tests.editor.tiny_pipelines import build_pipeline

    with pytest.raises(FileNotFoundError, match=r"want an editor folder with model_index\.json"):
        EmuEditPipeline.from_pretrained(tmp_path)
    build_pipeline("sd15").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"want an editor folder .* got .* with _class_name 'StableDiffusionPipeline'"):
        EmuEditPipeline.from_pretrained(tmp_path)


def test_an_editor_is_opened_from_the_hub(editor_folder: EditorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        return str(editor_folder("toy"))

    monkeypatch.setattr("emuedit.editor.edit_pipeline.snapshot_download", download)
    pipe = EmuEditPipeline.from_pretrained("owner/editor", revision="v1", dtype=torch.float32)
    assert pipe.tasks == ALL_TASKS
    ((name, options),) = calls
    assert (name, options["revision"]) == ("owner/editor", "v1")
    assert not any(pattern.endswith((".bin", ".pt", ".ckpt", "*")) for pattern in options["allow_patterns"])


@pytest.mark.slow
def test_the_card_is_pushed_unless_the_repository_has_its_own(pipe: EmuEditPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from diffusers.utils import hub_utils
    from huggingface_hub import ModelCard, ModelCardData

    pushed: dict[str, str] = {}

    def upload(folder_path: str, **_: Any) -> None:
        pushed.update({"card": Path(folder_path, "README.md").read_text(), "files": str(sorted(Path(folder_path).iterdir()))})

    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    monkeypatch.setattr(hub_utils, "create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
    empty = ModelCard.from_template(ModelCardData(library_name="diffusers"))
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *_, **__: empty)
    pipe.push_to_hub("owner/editor")
    assert "pipeline_tag: image-to-image" in pushed["card"]
    assert "task_embedding" in pushed["files"]
    assert "unet" in pushed["files"]
    edited_card = ModelCard("---\nlibrary_name: diffusers\n---\n\nOur card.")
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *_, **__: edited_card)
    pipe.push_to_hub("owner/editor")
    assert "Our card." in pushed["card"]


@pytest.mark.slow
def test_the_card_of_an_earlier_push_is_replaced(pipe: EmuEditPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    monkeypatch.setattr(
        DiffusionPipeline, "_upload_folder", lambda _, folder: pushed.append(Path(folder, "README.md").read_text())
    )
    (tmp_path / "README.md").write_text(model_card.render(pipe))
    pipe.sampler().add_task("contour", torch.ones(pipe.task_embedding.d_v))
    pipe._upload_folder(tmp_path)
    assert pushed == [model_card.render(pipe)]
    assert "`contour`" in pushed[0]


@pytest.mark.slow
def test_changed_weights_are_saved_with_another_fingerprint(pipe: EmuEditPipeline, tmp_path: Path) -> None:
    """A pack works only with the weights on which it was learned."""
    recorded = pipe.task_embedding.fingerprint
    pipe.unet = torch.compile(pipe.unet)
    pipe.save_pretrained(tmp_path)
    assert pipe.task_embedding.fingerprint == recorded, "compiled or not"
    pipe.unet = pipe.unet._orig_mod
    with torch.no_grad():
        pipe.unet.conv_in.weight += 1
    pipe.save_pretrained(tmp_path)
    again = EmuEditPipeline.from_pretrained(tmp_path)
    assert again.task_embedding.fingerprint == pipe.task_embedding.fingerprint != recorded


@pytest.mark.slow
def test_the_fingerprint_is_kept_in_a_wider_number_format(make_sampler: Callable[..., EditSampler], tmp_path: Path) -> None:
    sampler = make_sampler()
    sampler.save(tmp_path / "half", torch.float16)
    pipe = EmuEditPipeline.from_pretrained(tmp_path / "half", dtype=torch.float32)
    pipe.save_pretrained(tmp_path / "full")
    assert pipe.task_embedding.fingerprint == sampler.fingerprint


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::emuedit.editing.api.TruncatedInstructionWarning")  # a tiny text encoder reads 16 letters
@pytest.mark.parametrize("document", ["docs/api.md", "README.md"])
def test_the_code_of_the_docs_and_of_the_card_runs(
    document: str,
    editor_folder: EditorFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from emuedit import Editor

    folder = editor_folder("toy")
    text = (ROOT / document if document.startswith("docs") else folder / document).read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "EmuEditPipeline" in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/editor").symlink_to(folder)
    Image.fromarray(PIXELS).save("in.png")
    exec(code.replace("owner/name", "models/editor"), {})
    edited = np.asarray(Image.open("out.png"))
    assert edited.shape == (16, 20, 3)
    if "manual_seed(0)" in code:
        editor = Editor.load("models", "cpu", "float32")
        own_size = editor.settings.with_changes({"resolution": 64})  # as the pipeline, which resizes nothing
        np.testing.assert_array_equal(edited, editor.edit(PIXELS, "make the circle red", "local", own_size))
