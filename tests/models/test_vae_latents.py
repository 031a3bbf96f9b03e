from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from torch import nn

from emuedit.models import vae_latents
from tests.editor.tiny_pipelines import build_vae


class Recorder(nn.Module):
    """A VAE with a submodule, as on the CPU, that records the device of its inputs."""

    device, dtype, config = torch.device("cpu"), torch.float32, SimpleNamespace(scaling_factor=1.0)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Identity())
        self.devices: list[str] = []

    def encode(self, value: torch.Tensor) -> Any:
        self.devices.append(value.device.type)
        return SimpleNamespace(latents=value, sample=value)

    decode = encode


def offload_model(vae: nn.Module) -> None:
    add_hook_to_module(vae, AlignDevicesHook(torch.device("meta")))


def offload_layer(vae: nn.Module) -> None:
    add_hook_to_module(vae, AlignDevicesHook(io_same_device=True))
    add_hook_to_module(vae.encoder[0], AlignDevicesHook("meta"))


def offload_group(vae: nn.Module) -> None:
    vae.encoder[0] = nn.Linear(1, 1)
    apply_group_offloading(vae, onload_device=torch.device("cpu"), offload_type="leaf_level")  # which rejects the meta device
    vae.encoder[0]._diffusers_hook.get_hook("group_offloading").config.onload_device = torch.device("meta")


@pytest.mark.parametrize(
    ("offload", "device"), [(None, "cpu"), (offload_model, "meta"), (offload_layer, "meta"), (offload_group, "meta")]
)
def test_the_input_goes_to_where_the_vae_runs(offload: Callable[[nn.Module], None] | None, device: str) -> None:
    """Weights of an offloaded VAE lie elsewhere until hooks move them to the accelerator, whose place the meta device takes."""
    vae = Recorder()
    if offload is not None:
        offload(vae)
    vae_latents.encode(vae, torch.zeros(1, 3, 8, 8), 2)
    vae_latents.decode(vae, torch.zeros(1, 4, 4, 4))
    assert vae.devices == [device] * 2


@pytest.mark.parametrize(("force_upcast", "dtype"), [(True, torch.float16), (True, torch.bfloat16), (False, torch.float16)])
def test_a_vae_that_overflows_in_float16_runs_without_autocast_to_it(force_upcast: bool, dtype: torch.dtype) -> None:
    vae, images = build_vae("sdxl"), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae.register_to_config(force_upcast=force_upcast)
    z = vae_latents.encode(vae, images, 2)
    decoded = vae_latents.decode(vae, z)
    with torch.autocast("cpu", dtype):
        results = vae_latents.encode(vae, images, 2), vae_latents.decode(vae, z)
    is_exact = [torch.equal(got, want) for got, want in zip(results, (z, decoded), strict=True)]
    assert is_exact == [force_upcast and dtype == torch.float16] * 2
