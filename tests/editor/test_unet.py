from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emuedit.editor import checkpoint, unet
from emuedit.editor.unet import EditorUNet
from emuedit.models.text_to_image import TextToImageModel
from tests.editor.tiny_pipelines import KINDS

MakeBaseModel = Callable[[str], TextToImageModel]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_editor_predicts_what_its_base_model_does_bit_for_bit(
    kind: str, memory_format: torch.memory_format, make_base_model: MakeBaseModel
) -> None:
    """diffusers' own script loses the bias of the first convolution here (diffusers#4960)."""
    base_model = make_base_model(kind)
    editor = checkpoint.from_base_model(base_model, 6).to(memory_format=memory_format)
    base_model.unet.to(memory_format=memory_format)
    z_t = noise(2, base_model.channels, 8, 12).to(memory_format=memory_format)
    text, t = base_model.encode_text(["a star", "a ring"]), torch.tensor([7, 800])
    with torch.no_grad():
        want = base_model.predict(z_t, t, text)
        got = editor(z_t, t, torch.zeros_like(z_t), text, None)
    assert torch.equal(want, got.e)
    assert got.change_logits is not None
    assert torch.equal(got.change_logits, torch.zeros_like(z_t[:, :1])), "the change-mask head starts at zero"
    assert base_model.unet.conv_in.bias.abs().sum() > 0, "a bias of zeros would prove nothing"
    assert torch.equal(editor.unet.conv_in.bias, base_model.unet.conv_in.bias)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_without_a_change_mask_head_the_network_has_the_base_models_outputs(kind: str, make_base_model: MakeBaseModel) -> None:
    """Bit for bit the same prediction as with the head, and no change logits."""
    base_model = make_base_model(kind)
    with_head = checkpoint.from_base_model(base_model, 6)
    without = EditorUNet(unet.extend_unet(base_model.unet, 6, change_mask=False), with_head.table, base_model.factor)
    assert not unet.has_change_mask(without.unet, base_model.channels)
    assert unet.has_change_mask(with_head.unet, base_model.channels)
    z_t, c_I = noise(2, 2, base_model.channels, 8, 8)
    text = base_model.encode_text(["a star", "a ring"])
    with torch.no_grad():
        e, change_logits = without(z_t, torch.tensor(500), c_I, text, with_head.table.v[:2])
        want = with_head(z_t, torch.tensor(500), c_I, text, with_head.table.v[:2]).e
    assert change_logits is None
    torch.testing.assert_close(e, want, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_smaller_pictures_than_the_base_models_count_as_scaled_down(make_base_model: MakeBaseModel) -> None:
    """As the pairs of a training at a smaller size are. Edits named their own size, which no pair of the training had."""
    base_model = make_base_model("sdxl")
    editor = checkpoint.from_base_model(base_model, 6)
    native, factor = base_model.size[0], base_model.factor
    text = base_model.encode_text(["a star"])
    for side, original in ((native // factor // 2, native), (2 * native // factor, 2 * native)):
        z_t, c_I = noise(2, 1, base_model.channels, side, side)
        stated = torch.tensor([[original, original, 0, 0, side * factor, side * factor]])
        with torch.no_grad():
            computed, as_stated = (editor(z_t, torch.tensor(500), c_I, text, None, sizes).e for sizes in (None, stated))
        assert torch.equal(computed, as_stated)


@pytest.mark.slow
def test_size_conditions_have_an_effect_on_sdxl_alone(make_base_model: MakeBaseModel) -> None:
    """Pictures that are stated to have the size of their latents give what is computed without sizes; a crop does not."""
    for kind in ("sdxl", "sd15"):
        base_model = make_base_model(kind)
        editor = checkpoint.from_base_model(base_model, 6)
        z_t, c_I = noise(2, 2, base_model.channels, 8, 12)
        text = base_model.encode_text(["a star", "a ring"])
        height, width = 8 * base_model.factor, 12 * base_model.factor
        same = torch.tensor([[height, width, 0, 0, height, width]] * 2)
        cropped = torch.tensor([[2 * height, width, 5, 0, height, width]] * 2)
        with torch.no_grad():
            computed, stated, with_crop = (
                editor(z_t, torch.tensor(500), c_I, text, None, sizes).e for sizes in (None, same, cropped)
            )
        assert torch.equal(computed, stated)
        assert torch.equal(computed, with_crop) == (kind == "sd15")
        if kind == "sdxl":
            with pytest.raises(ValueError, match=r"want size conditions of the shape \(2, 6\).*got \(1, 6\)"):
                editor(z_t, torch.tensor(500), c_I, text, None, same[:1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_picture_and_task_have_no_effect_at_first_but_get_gradients(kind: str, make_base_model: MakeBaseModel) -> None:
    """At the start only the token of a task has an effect; picture, class projection, token and row all get a gradient."""
    base_model = make_base_model(kind)
    editor = checkpoint.from_base_model(base_model, 6).requires_grad_(True)
    z_t, c_I = noise(2, 2, base_model.channels, 8, 8)
    text = base_model.encode_text(["a star", "a ring"])
    with torch.no_grad():
        assert torch.equal(editor(z_t, 500, c_I, text, None).e, editor(z_t, 500, torch.zeros_like(c_I), text, None).e)
    editor(z_t, 500, c_I, text, editor.table.v[:2]).e.square().mean().backward()
    new_weights = editor.unet.conv_in.weight.grad[:, base_model.channels :], editor.unet.class_embedding.weight.grad
    for gradient in (*new_weights, editor.table.to_token.weight.grad, editor.table.v.grad):
        assert gradient is not None
        assert gradient.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_extended_unet_is_loaded_by_diffusers_alone(kind: str, make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    base_model = make_base_model(kind)
    editor = checkpoint.from_base_model(base_model, 6)
    editor.unet.save_pretrained(tmp_path / "unet")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert loaded.config.in_channels == 2 * base_model.channels
    assert loaded.config.out_channels == base_model.channels + 1
    for name, value in editor.unet.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_a_unet_with_a_class_embedding_is_refused(make_base_model: MakeBaseModel) -> None:
    extended = unet.extend_unet(make_base_model("toy").unet, 6)
    with pytest.raises(ValueError, match="without class embedding"):
        unet.extend_unet(extended, 6)


def test_a_task_embedding_wider_than_sdxl_allows_is_refused(make_base_model: MakeBaseModel) -> None:
    with pytest.raises(ValueError, match="at most 68"):
        unet.extend_unet(make_base_model("sdxl").unet, 69)


def test_the_fingerprint_depends_on_every_weight_but_not_on_the_rows_of_tasks(make_base_model: MakeBaseModel) -> None:
    editor = checkpoint.from_base_model(make_base_model("toy"), 6)
    fingerprint = unet.fingerprint(editor, torch.float32)
    editor.table.add("contour", torch.ones(6))
    assert unet.fingerprint(editor, torch.float32) == fingerprint
    with torch.no_grad():
        editor.unet.conv_out.bias[0] += 1
    assert unet.fingerprint(editor, torch.float32) != fingerprint
    with torch.no_grad():
        editor.unet.conv_out.bias[0] -= 1
        editor.table.to_token.bias[0] += 1
    assert unet.fingerprint(editor, torch.float32) != fingerprint
