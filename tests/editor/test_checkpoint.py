from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emuedit.editor import checkpoint, unet
from emuedit.models.text_to_image import TextToImageModel
from emuedit.tasks import TASKS
from tests.editor.tiny_pipelines import KINDS

MakeBaseModel = Callable[[str], TextToImageModel]


@pytest.mark.parametrize("kind", KINDS)
def test_an_editor_folder_has_the_pipeline_class_of_the_base_model(
    kind: str, make_base_model: MakeBaseModel, tmp_path: Path
) -> None:
    import diffusers

    base_model = make_base_model(kind)
    before = {name: value.clone() for name, value in base_model.text_encoder.state_dict().items()}
    editor = checkpoint.from_base_model(base_model, 6)
    weights = checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float16)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".txt", ".model"}
    pipeline = getattr(diffusers, type(base_model.pipeline).__name__).from_pretrained(tmp_path)
    assert pipeline.unet.config.class_embed_type == "simple_projection"
    assert base_model.text_encoder.dtype == torch.float32, "saving must not change what is in memory"
    assert all(torch.equal(value, before[name]) for name, value in base_model.text_encoder.state_dict().items())
    loaded, _, fingerprint = checkpoint.load(str(tmp_path), "cpu", torch.float32)
    assert fingerprint == weights == unet.fingerprint(loaded, torch.float16)
    assert loaded.table.names == tuple(task.name for task in TASKS)
    torch.testing.assert_close(loaded.table.v, editor.table.v.half().float(), rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_the_weights_in_memory_are_those_of_before_after_saving(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("toy")
    editor = checkpoint.from_base_model(base_model, 6)
    before = {name: value.clone() for name, value in editor.state_dict().items()}
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float16)
    for name, value in editor.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert base_model.pipeline.unet is editor.unet


def test_a_base_model_is_not_accepted_as_an_editor(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("toy")
    base_model.pipeline.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="a base model is no editor"):
        checkpoint.load(str(tmp_path), "cpu", torch.float32)
    checkpoint.from_base_model(base_model, 6).table.save(tmp_path / checkpoint.TASKS_FOLDER, "0", torch.float32)
    with pytest.raises(ValueError, match="this is a base model, train an editor from it"):
        checkpoint.load(str(tmp_path), "cpu", torch.float32)


def test_an_editor_with_another_number_of_channels_is_refused(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    """Such as an editor without a change-mask head."""
    from diffusers import UNet2DConditionModel

    base_model = make_base_model("toy")
    editor = checkpoint.from_base_model(base_model, 6)
    editor.unet = UNet2DConditionModel.from_config({**editor.unet.config, "out_channels": base_model.channels})
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float32)
    with pytest.raises(ValueError, match=r"have 16 input and 9 output channels.*got 16 and 8; train the editor again"):
        checkpoint.load(str(tmp_path), "cpu", torch.float32)
