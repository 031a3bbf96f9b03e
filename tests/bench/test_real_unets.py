"""The configs of the real U-Nets give the published numbers of parameters, and the known FLOPs; on meta tensors."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from emuedit.training.memory import flops

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def real_unets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("harness.real_unets")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), [("sd15", 859.5), ("sdxl", 2567.5)])
def test_the_number_of_parameters_is_the_published_one(real_unets: ModuleType, name: str, millions: float) -> None:
    n = sum(parameter.numel() for parameter in real_unets.build_unet(name).parameters())
    assert n == real_unets.N_PARAMETERS[name]
    assert n / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.slow
def test_a_forward_pass_of_stable_diffusion_takes_the_known_flops(real_unets: ModuleType) -> None:
    """0.68e12 to 0.8e12 are reported for 512 px; 0.8e12 with cross-attention and all projections."""
    assert flops.forward_flops(real_unets.build_editor("sd15"), (4, 64, 64), 77) == pytest.approx(0.80e12, rel=0.02)


@pytest.mark.slow
def test_narrow_unets_have_the_blocks_of_the_real_ones(real_unets: ModuleType) -> None:
    """The numbers of parameters in the stored results."""
    sizes = importlib.import_module("sizes")
    for architecture, pooled_width, n in (("sd15", 0, 8_625_252), ("sdxl", 128, 25_916_292)):
        unet = sizes.random_unet(architecture, sizes.CPU_SCALE, 72 + pooled_width, pooled_width)
        assert sum(parameter.numel() for parameter in unet.parameters()) == n
    assert importlib.import_module("harness.training_task").SHAPES["sd15-512"].unet == real_unets.CONFIGS["sd15"]
