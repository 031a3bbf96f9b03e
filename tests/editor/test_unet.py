from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emuedit.editor import checkpoint, task_embedding, unet
from emuedit.models.text_to_image import TextToImageModel
from emuedit.tasks import TASKS, UnknownTaskError

SHAPES = ("toy", "sd15", "sd2", "sdxl")
MakePainter = Callable[[str], TextToImageModel]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_untrained_editor_is_the_painter_bit_for_bit(
    shape: str, memory_format: torch.memory_format, make_painter: MakePainter
) -> None:
    """diffusers' own script loses the bias of the first convolution here (diffusers#4960)."""
    base_model = make_painter(shape)
    editor = checkpoint.from_base_model(base_model, 6).to(memory_format=memory_format)
    base_model.unet.to(memory_format=memory_format)
    z_t = torch.randn(2, base_model.channels, 8, 12).to(memory_format=memory_format)
    text, t = base_model.encode_text(["a star", "a ring"]), torch.tensor([7, 800])
    with torch.no_grad():
        want = base_model.predict(z_t, t, text)
        got = editor(z_t, t, torch.zeros_like(z_t), text, None)
    assert torch.equal(want, got.e)
    assert torch.equal(got.change, torch.zeros_like(z_t[:, :1])), "it does not know yet"
    assert base_model.unet.conv_in.bias.abs().sum() > 0, "a bias of zeros would prove nothing"
    assert torch.equal(editor.unet.conv_in.bias, base_model.unet.conv_in.bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_picture_and_task_start_silent_and_learn(shape: str, make_painter: MakePainter) -> None:
    """At the start only the token of a task is heard; a gradient reaches picture, class projection, token and row."""
    base_model = make_painter(shape)
    editor = checkpoint.from_base_model(base_model, 6).requires_grad_(True)
    z_t, c_I = torch.randn(2, 2, base_model.channels, 8, 8)
    text = base_model.encode_text(["a star", "a ring"])
    with torch.no_grad():
        assert torch.equal(editor(z_t, 500, c_I, text, None).e, editor(z_t, 500, torch.zeros_like(c_I), text, None).e)
    editor(z_t, 500, c_I, text, editor.table.v[:2]).e.square().mean().backward()
    grown = editor.unet.conv_in.weight.grad[:, base_model.channels :], editor.unet.class_embedding.weight.grad
    for gradient in (*grown, editor.table.to_token.weight.grad, editor.table.v.grad):
        assert gradient is not None
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_widened_unet_reloads_by_diffusers_alone(shape: str, make_painter: MakePainter, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    base_model = make_painter(shape)
    editor = checkpoint.from_base_model(base_model, 6)
    editor.unet.save_pretrained(tmp_path / "unet")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert again.config.in_channels == 2 * base_model.channels
    assert again.config.out_channels == base_model.channels + 1
    for name, value in editor.unet.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("shape", SHAPES)
def test_editor_folder_is_the_painters_own_pipeline_class(shape: str, make_painter: MakePainter, tmp_path: Path) -> None:
    import diffusers

    base_model = make_painter(shape)
    before = {name: value.clone() for name, value in base_model.text_encoder.state_dict().items()}
    editor = checkpoint.from_base_model(base_model, 6)
    weights = checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float16)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".txt", ".model"}
    again = getattr(diffusers, type(base_model.pipeline).__name__).from_pretrained(tmp_path)
    assert again.unet.config.class_embed_type == "simple_projection"
    assert base_model.text_encoder.dtype == torch.float32, "saving must not change what is in memory"
    assert all(torch.equal(value, before[name]) for name, value in base_model.text_encoder.state_dict().items())
    loaded, _, fingerprint = checkpoint.load(str(tmp_path), "cpu", torch.float32)
    assert fingerprint == weights == unet.fingerprint(loaded, torch.float16)
    assert loaded.table.names == tuple(task.name for task in TASKS)
    torch.testing.assert_close(loaded.table.v, editor.table.v.half().float(), rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_a_painter_is_no_editor(make_painter: MakePainter, tmp_path: Path) -> None:
    make_painter("toy").pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="this is a base_model, train an editor from it"):
        checkpoint.load(str(tmp_path), "cpu", torch.float32)


def test_an_editor_of_other_channels_is_refused(make_painter: MakePainter, tmp_path: Path) -> None:
    """Such as one that does not say where the picture changes."""
    from diffusers import UNet2DConditionModel

    base_model = make_painter("toy")
    editor = checkpoint.from_base_model(base_model, 6)
    editor.unet = UNet2DConditionModel.from_config({**editor.unet.config, "out_channels": base_model.channels})
    checkpoint.save(editor, base_model.pipeline, tmp_path, torch.float32)
    with pytest.raises(ValueError, match=r"read 16 channels and say 9.*got 16 and 8; .* train the editor anew"):
        checkpoint.load(str(tmp_path), "cpu", torch.float32)


def test_a_unet_with_a_class_embedding_is_refused(make_painter: MakePainter) -> None:
    once = unet.widened(make_painter("toy").unet, 6)
    with pytest.raises(ValueError, match="without class embedding"):
        unet.widened(once, 6)
    with pytest.raises(ValueError, match="at most 68"):
        unet.widened(make_painter("sdxl").unet, 69)


def test_fingerprint_sees_every_weight_but_no_row(make_painter: MakePainter) -> None:
    editor = checkpoint.from_base_model(make_painter("toy"), 6)
    mark = unet.fingerprint(editor, torch.float32)
    editor.table.add("contour", torch.ones(6))
    assert unet.fingerprint(editor, torch.float32) == mark
    with torch.no_grad():
        editor.unet.conv_out.bias[0] += 1
    assert unet.fingerprint(editor, torch.float32) != mark


def test_table_names_what_it_knows() -> None:
    rows = task_embedding.TaskEmbedding(6, 16)
    assert rows.names == tuple(task.name for task in TASKS)
    assert torch.equal(rows.rows(["remove", "local"]), rows.v[[1, 0]])
    with pytest.raises(UnknownTaskError, match=r"local, remove.*got 'remov'; did you mean 'remove'\?"):
        rows.rows(["remov"])
    v = torch.arange(6.0)
    rows.add("contour", v)
    assert rows.names[-1] == "contour"
    assert torch.equal(rows.rows(["contour"])[0], v)
    with pytest.raises(ValueError, match="want a new name"):
        rows.add("contour", v)
    with pytest.raises(ValueError, match=r"finite task embedding \[6\]"):
        rows.add("inpaint", torch.full((6,), torch.nan))
