from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.models import vae_latents


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
