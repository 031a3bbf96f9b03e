"""FLOPs of a sample against PyTorch's count of real passes, and the utilization."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from emuedit.training import lora
from emuedit.training.lora import LoraSettings
from emuedit.training.memory import flops
from emuedit.training.memory.meta_step import editor_loss
from tests.editor.tiny_pipelines import build_base_model, build_editor_unet

LATENT, N_TOKENS = (4, 8, 8), 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "with_lora", "checkpointing"), [("sd15", False, False), ("sdxl", False, True), ("sd15", True, True)]
)
def test_flops_of_a_step_are_those_of_real_passes(kind: str, with_lora: bool, checkpointing: bool) -> None:
    net = build_editor_unet(build_base_model(kind)).train().requires_grad_(True)
    forward = flops.forward_flops(net, LATENT, N_TOKENS)
    if with_lora:
        lora.add_adapters(net.unet, LoraSettings(rank=1))
    if checkpointing:
        net.unet.enable_gradient_checkpointing()
    with FlopCounterMode(display=False) as counter:
        editor_loss(net, (), LATENT, N_TOKENS, batch_size=1).backward()
    assert flops.training_flops(forward, with_lora, checkpointing) == pytest.approx(counter.get_total_flops(), rel=0.15)
    assert next(net.parameters()).device.type == "cpu"


@pytest.mark.slow
def test_attention_is_counted() -> None:
    """Its products grow with the square of the number of cells, all others linearly."""
    net = build_editor_unet(build_base_model("sd15"))
    small, large = (flops.forward_flops(net, (4, n, n), N_TOKENS) for n in (8, 16))
    assert large > 4.1 * small


def test_a_device_reaches_its_own_peak() -> None:
    device = torch.device("cpu")
    peak = flops.peak_flops(device, torch.float32)
    assert peak > 1e8
    assert flops.peak_flops(device, torch.float32) == peak, "measured once"
    assert flops.mfu(2_000_000, peak / 4_000_000, device, torch.float32) == pytest.approx(0.5)
