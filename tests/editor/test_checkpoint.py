from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from emuedit.editor import checkpoint, sampling, unet
from emuedit.editor.edit_pipeline import EmuEditPipeline
from emuedit.models.text_to_image import TextToImageModel
from emuedit.tasks import TASKS, UnknownTaskError
from tests.editor.tiny_pipelines import KINDS

MakeBaseModel = Callable[[str], TextToImageModel]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_editor_is_a_pipeline_folder_with_all_its_parts(
    kind: str, make_base_model: MakeBaseModel, tmp_path: Path
) -> None:
    base_model = make_base_model(kind)
    before = {name: value.clone() for name, value in base_model.text_encoder.state_dict().items()}
    editor = checkpoint.from_base_model(base_model, 6)
    weights = checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float16)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".txt", ".model", ".md"}
    for file in tmp_path.rglob("*.json"):
        assert "_name_or_path" not in file.read_text(), f"{file.name} names a path of this machine"
    assert base_model.text_encoder.dtype == torch.float32, "saving must not change what is in memory"
    assert all(torch.equal(value, before[name]) for name, value in base_model.text_encoder.state_dict().items())
    loaded, parts, fingerprint = checkpoint.load(str(tmp_path), "cpu", torch.float32)
    assert fingerprint == weights == unet.fingerprint(loaded, torch.float16)
    assert loaded.table.names == tuple(task.name for task in TASKS)
    torch.testing.assert_close(loaded.table.v, editor.table.v.half().float(), rtol=0, atol=0)
    for name, part in base_model.pipeline.components.items():
        if isinstance(part, nn.Module) and name != "unet":
            loaded_weights = parts.pipeline.components[name].state_dict()
            assert all(torch.equal(loaded_weights[key], value.half().float()) for key, value in part.state_dict().items()), name
    assert not any(weight.requires_grad for weight in [*loaded.parameters(), *parts.text_encoder.parameters()])


@pytest.mark.slow
def test_the_weights_in_memory_are_those_of_before_after_saving(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("toy")
    base_unet = base_model.pipeline.unet
    editor = checkpoint.from_base_model(base_model, 6)
    before = {name: value.clone() for name, value in editor.state_dict().items()}
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float16)
    for name, value in editor.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert base_model.pipeline.unet is base_unet


@pytest.mark.slow
def test_saving_copies_one_part_at_a_time_and_none_that_is_in_the_format_already(
    make_base_model: MakeBaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import ModelMixin

    base_model = make_base_model("sd15")
    editor = checkpoint.from_base_model(base_model, 6)
    in_memory = {value.data_ptr() for value in editor.state_dict().values()}
    saved: list[nn.Module] = []
    save_pretrained = ModelMixin.save_pretrained

    def record(part: Any, *args: Any, **kwargs: Any) -> None:
        saved.append(part)
        save_pretrained(part, *args, **kwargs)

    monkeypatch.setattr(ModelMixin, "save_pretrained", record)
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float32)
    (stored,) = (part for part in saved if type(part) is type(editor.unet))
    assert stored is not editor.unet
    assert {value.data_ptr() for value in stored.state_dict().values()} <= in_memory
    saved.clear()
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float16)
    assert {weight.dtype for part in saved for weight in part.parameters()} == {torch.float16}


@pytest.mark.slow
def test_an_editor_has_rows_for_the_given_tasks_alone(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("toy")
    editor = checkpoint.from_base_model(base_model, 6, ["remove", "local"])
    assert editor.table.v.shape == (2, 6)
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float32)
    loaded, _, _ = checkpoint.load(str(tmp_path), "cpu", torch.float32)
    assert loaded.table.names == ("remove", "local")
    with pytest.raises(UnknownTaskError, match=r"tasks \(remove, local\), got 'add'"):
        loaded.table.rows(["add"])


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [[], ["local", "local"]])
def test_an_editor_needs_different_tasks(tasks: list[str], make_base_model: MakeBaseModel) -> None:
    with pytest.raises(ValueError, match="want one or more different tasks to train on"):
        checkpoint.from_base_model(make_base_model("toy"), 6, tasks)
    with pytest.raises(UnknownTaskError, match="got 'polish'"):
        checkpoint.from_base_model(make_base_model("toy"), 6, ["polish"])


@pytest.mark.slow
@pytest.mark.parametrize("change_mask", [True, False])
def test_an_editor_may_do_without_a_change_mask_head(change_mask: bool, make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("sd15")
    editor = checkpoint.from_base_model(base_model, 6, change_mask=change_mask)
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float32)
    loaded, _, _ = checkpoint.load(str(tmp_path), "cpu", torch.float32)
    assert loaded.unet.config.out_channels == base_model.channels + change_mask


@pytest.mark.slow
def test_an_editor_folder_has_the_resolution_of_its_training(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("toy")  # of 16 px
    editor = checkpoint.from_base_model(base_model, 6)
    checkpoint.save(editor, base_model.pipeline, tmp_path / "trained", torch.float32, {"steps": 3, "resolution": 256})
    sampler = sampling.load(tmp_path / "trained")
    assert sampler.resolution_px == 256
    assert EmuEditPipeline.from_pretrained(tmp_path / "trained").sampler().resolution_px == 256
    assert sampler.parts.size == (16, 16), "on which SDXL's size conditions depend"
    sampler.save(tmp_path / "saved again", torch.float32)
    assert sampling.load(tmp_path / "saved again").resolution_px == 256
    checkpoint.save(editor, sampler.parts.pipeline, tmp_path / "continued", torch.float32, {"steps": 3})
    assert sampling.load(tmp_path / "continued").resolution_px == 16, "the base model's, which a training without one has"


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [0, -256, 16385, True, 256.0, "256", [256]])
def test_a_resolution_out_of_bounds_is_an_error(resolution: Any, make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("toy")
    editor = checkpoint.from_base_model(base_model, 6)
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float32, {"resolution": resolution})
    with pytest.raises(ValueError, match=r"want a training resolution from 1 to 16384 px .*, got .*; correct it, or remove it"):
        sampling.load(tmp_path)


@pytest.mark.slow
def test_a_base_model_is_not_accepted_as_an_editor(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("toy")
    base_model.pipeline.save_pretrained(tmp_path / "base_model")
    with pytest.raises(ValueError, match=r"want an editor folder .* got .* with _class_name 'StableDiffusionPipeline'"):
        checkpoint.load(str(tmp_path / "base_model"), "cpu", torch.float32)
    net = checkpoint.from_base_model(base_model, 6)
    net.unet = base_model.unet
    checkpoint.save(net, base_model.pipeline, tmp_path / "mixed", torch.float32)
    with pytest.raises(ValueError, match="this is a base model; train an editor from it"):
        checkpoint.load(str(tmp_path / "mixed"), "cpu", torch.float32)


@pytest.mark.slow
def test_an_editor_with_another_number_of_channels_is_refused(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    base_model = make_base_model("toy")
    editor = checkpoint.from_base_model(base_model, 6)
    editor.unet = UNet2DConditionModel.from_config({**editor.unet.config, "out_channels": base_model.channels + 2})
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float32)
    with pytest.raises(
        ValueError, match=r"have 16 input channels and 8 output channels.* or 9 with a change-mask head; got 16 and 10"
    ):
        checkpoint.load(str(tmp_path), "cpu", torch.float32)
