from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.models import vae_latents
from tests.editor.tiny_pipelines import build_vae


@pytest.mark.parametrize(("hook", "device"), [(None, "cpu"), (SimpleNamespace(execution_device=torch.device("meta")), "meta")])
def test_the_input_goes_to_where_the_vae_runs(hook: Any, device: str) -> None:
    """An offloaded VAE lies on the CPU until its hook moves it to the accelerator, whose place the meta device takes here."""
    devices: list[str] = []

    def record(value: torch.Tensor) -> Any:
        devices.append(value.device.type)
        return SimpleNamespace(latents=value, sample=value)

    vae = SimpleNamespace(
        device=torch.device("cpu"), dtype=torch.float32, config=SimpleNamespace(scaling_factor=1.0), encode=record, decode=record
    )
    if hook is not None:
        vae._hf_hook = hook
    vae_latents.encode(vae, torch.zeros(1, 3, 8, 8), 2)
    vae_latents.decode(vae, torch.zeros(1, 4, 4, 4))
    assert devices == [device] * 2


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
