"""Adapters: few weights are trained, nothing changes before training, and the merged network is an ordinary one."""

import pytest
import torch

from emuedit.editor.unet import EditorUNet
from emuedit.models.text_to_image import TextCondition
from emuedit.training import lora
from emuedit.training.lora import LoraSettings
from tests.editor.tiny_pipelines import D_V, build_base_model, build_editor_unet

KINDS = ("toy", "sd15", "sdxl")


def predict(net: EditorUNet, kind: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    channels, width = net.unet.config.in_channels // 2, net.unet.config.cross_attention_dim
    z_t, c_I = torch.randn(2, 2, channels, 8, 8, generator=random)
    pooled = torch.randn(2, 20, generator=random) if kind == "sdxl" else None
    text = TextCondition(torch.randn(2, 16, width, generator=random), pooled)
    with torch.no_grad():
        return net(z_t, torch.tensor([7, 500]), c_I, text, torch.randn(2, D_V, generator=random)).e


def make_net(kind: str, settings: LoraSettings) -> EditorUNet:
    net = build_editor_unet(build_base_model(kind)).float()
    net.requires_grad_(True)
    lora.add_adapters(net.unet, settings)
    return net


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_change_nothing_and_merged_ones_compute_the_same(kind: str, dora: bool) -> None:
    original = build_editor_unet(build_base_model(kind)).float()
    want, names = predict(original, kind), set(original.state_dict())
    net = make_net(kind, LoraSettings(rank=2, dora=dora))
    torch.testing.assert_close(predict(net, kind), want, rtol=1e-5, atol=1e-5)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in net.unet.named_parameters():
            if "lora_" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    trained = predict(net, kind)
    assert (trained - want).abs().max() > 0.01
    lora.merge_adapters(net.unet)
    assert set(net.state_dict()) == names
    torch.testing.assert_close(predict(net, kind), trained, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_only_adapters_and_new_layers_are_trained() -> None:
    net = make_net("sd15", LoraSettings(rank=2))
    trained = {name for name, parameter in net.unet.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained if "lora_" not in name} == set(lora.NEW_LAYERS)
    assert any("lora_A" in name for name in trained)
    assert any("lora_B" in name for name in trained)
    assert all(parameter.requires_grad for parameter in net.table.parameters())


@pytest.mark.slow
def test_frozen_weights_may_be_half_as_large() -> None:
    net = build_editor_unet(build_base_model("sd15")).float()
    lora.add_adapters(net.unet, LoraSettings(rank=2), torch.bfloat16)
    for name, parameter in net.unet.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
