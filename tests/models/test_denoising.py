import inspect
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from emuedit.core import diffusion
from emuedit.models.denoising import Denoiser, size_conditions
from emuedit.models.objective import training_timesteps

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
TRAILING: dict[str, Any] = BETAS | {"timestep_spacing": "trailing"}
TOY: dict[str, Any] = TRAILING | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False}
CPU = torch.device("cpu")
BY_SPACING: list[tuple[type, dict[str, Any]]] = [
    (DDIMScheduler, TOY),
    (DDPMScheduler, TRAILING | {"clip_sample": False}),
    (PNDMScheduler, TRAILING | {"skip_prk_steps": True}),
    (EulerDiscreteScheduler, TRAILING),
    (DPMSolverMultistepScheduler, TRAILING),
    (UniPCMultistepScheduler, TRAILING),
    (HeunDiscreteScheduler, TRAILING),
]
# some schedulers pass a tensor to numpy, whose __array__ has the signature from before numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


def build(scheduler: type, config: dict[str, Any]) -> Any:
    accepted = inspect.signature(scheduler.__init__).parameters  # type: ignore[misc]
    return scheduler(**{name: value for name, value in config.items() if name in accepted})


def error_of_perfect_network(scheduler: Any, steps: int) -> float:
    """Mean error of the latents at the end, if the network knows the clean latents."""
    denoiser = Denoiser(scheduler, steps, CPU, [torch.Generator().manual_seed(1)])
    z, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    z_t = denoiser.start(eps)
    for t in denoiser.timesteps:
        scaled = denoiser.scale(z_t, t)
        # a trained network takes the timestep -1 for a small one
        levels = denoiser.noise_levels(t.clamp(min=0), scaled)
        z_t = denoiser.step(diffusion.prediction_for_clean(z, scaled, *levels, denoiser.prediction_type), t, z_t)
    return (z_t - z).abs().mean().item()


@pytest.mark.slow
def test_each_number_of_trailing_steps_has_as_many_trained_timesteps() -> None:
    scheduler = DDIMScheduler(**TOY)
    for steps in range(1, 1001):
        timesteps = Denoiser(scheduler, steps, CPU).timesteps
        assert len(timesteps) == steps
        assert timesteps[0] == 999
        assert (timesteps.diff() < 0).all()
        assert timesteps[-1] >= 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "config"), BY_SPACING)
def test_an_edit_in_61_steps_is_as_exact_as_in_62(kind: type, config: dict[str, Any]) -> None:
    """diffusers adds a 62nd step at the timestep -1 to 61 trailing steps."""
    scheduler = build(kind, config)
    denoiser, longer = Denoiser(scheduler, 61, CPU), Denoiser(scheduler, 62, CPU)
    assert denoiser.timesteps.min() >= 0
    assert len(denoiser.timesteps) < len(longer.timesteps)
    if hasattr(scheduler, "sigmas"):
        assert len(denoiser.scheduler.sigmas) == len(denoiser.timesteps) + 1
        trained = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
        torch.testing.assert_close(denoiser.scheduler.sigmas[:-1], trained[denoiser.timesteps.long()], rtol=1e-4, atol=1e-4)
    errors = error_of_perfect_network(scheduler, 61), error_of_perfect_network(scheduler, 62)
    assert errors[0] <= 1.1 * errors[1] + 1e-4


@pytest.mark.parametrize(
    ("kind", "config", "steps", "last"),
    [
        (DDIMScheduler, BETAS, 1000, 1000),
        (PNDMScheduler, BETAS | {"skip_prk_steps": True}, 1000, 1000),
        (EulerDiscreteScheduler, BETAS | {"timestep_spacing": "leading"}, 1000, 1000),
        (UniPCMultistepScheduler, BETAS | {"timestep_spacing": "leading"}, 999, 1000),
        (EulerDiscreteScheduler, TRAILING | {"num_train_timesteps": 100}, 150, 99),
    ],
)
def test_a_timestep_that_was_not_trained_is_an_error(kind: type, config: dict[str, Any], steps: int, last: int) -> None:
    scheduler = build(kind, config)
    n_trained = scheduler.config.num_train_timesteps
    message = rf"want timesteps from 0 to {n_trained - 1}.*got up to {last} \({kind.__name__}, {steps} steps\); use fewer steps"
    with pytest.raises(ValueError, match=message):
        Denoiser(scheduler, steps, CPU)
    assert len(Denoiser(scheduler, n_trained - 2, CPU).timesteps) >= n_trained - 2


@pytest.mark.parametrize(
    ("kind", "config", "first"),
    [
        (PNDMScheduler, BETAS | {"skip_prk_steps": True}, 1),
        (DDIMScheduler, BETAS, 1),
        (EulerDiscreteScheduler, BETAS | {"timestep_spacing": "leading"}, 1),
        (EulerDiscreteScheduler, BETAS | {"timestep_spacing": "linspace"}, 0),
    ],
)
def test_a_single_step_at_an_almost_clean_timestep_is_an_error(kind: type, config: dict[str, Any], first: int) -> None:
    """It took pure noise for an almost clean image; SD1.5 and SDXL have leading timesteps."""
    scheduler = build(kind, config)
    message = rf"want a first timestep of at least 499\.5.* got {first} \({kind.__name__}, 1 steps\); use more steps, or a sched"
    with pytest.raises(ValueError, match=message):
        Denoiser(scheduler, 1, CPU)
    for steps in range(2, 12):
        assert Denoiser(scheduler, steps, CPU).timesteps.max() >= 500
    assert Denoiser(build(kind, config | {"timestep_spacing": "trailing"}), 1, CPU).timesteps[0] == 999


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
def test_interpolated_steps_below_zero_are_an_error() -> None:
    scheduler = build(KDPM2DiscreteScheduler, TRAILING)
    with pytest.raises(ValueError, match=r"got -1 \(KDPM2DiscreteScheduler, 61 steps\); use 60 steps, or another scheduler"):
        Denoiser(scheduler, 61, CPU)
    assert Denoiser(scheduler, 60, CPU).timesteps.min() >= 0


def test_flow_has_continuous_timesteps() -> None:
    timesteps = Denoiser(FlowMatchEulerDiscreteScheduler(), 61, CPU).timesteps
    assert len(timesteps) == 61
    assert timesteps[0] == 1000


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_steps_of_flow_have_equal_lengths_before_one_shift(shift: float) -> None:
    """The last of four steps covered 0.1 % of the path, so three steps drew the image; and a shift was applied twice."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    u = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    want = shift * u / (1 + (shift - 1) * u)
    denoiser = Denoiser(scheduler, 4, CPU)
    torch.testing.assert_close(denoiser.scheduler.sigmas, want)
    torch.testing.assert_close(denoiser.timesteps, 1000 * want[:-1])
    trained = training_timesteps(scheduler, torch.tensor([999, 749, 499, 249]))
    torch.testing.assert_close(denoiser.timesteps, trained)
    for steps in (1, 4, 1000):
        assert len(Denoiser(scheduler, steps, CPU).timesteps) == steps
    assert error_of_perfect_network(scheduler, 4) < 1e-5


@pytest.mark.parametrize(
    ("size", "native_px"), [((512, 512), 1024.0), ((448, 576), 1024.0), ((512, 512), 512.0), ((1024, 1024), 0.0)]
)
def test_a_pair_has_the_size_conditions_of_an_edit_of_its_size(size: tuple[int, int], native_px: float) -> None:
    """A pair of 512 px was trained as a small original, and edited as one of SDXL's 1024 px."""
    z_t, pooled = torch.zeros(2, 4, size[0] // 8, size[1] // 8), torch.zeros(2, 6)

    def time_ids(sizes: torch.Tensor | None) -> list[list[float]]:
        conditions = size_conditions(pooled, z_t, 8, torch.float32, sizes, native_px)
        assert conditions is not None
        return conditions["time_ids"].tolist()

    edit = time_ids(None)
    scale = max(1.0, native_px / (size[0] * size[1]) ** 0.5)
    assert edit[0] == [round(scale * size[0]), round(scale * size[1]), 0, 0, *size]
    uncropped, cropped = [*size, 0, 0, *size], [*size, 3, 5, *size]
    assert time_ids(torch.tensor([uncropped, cropped])) == [edit[0], [*edit[0][:2], 3, 5, *size]]
    large = [2048, 1024, 0, 7, *size]
    assert time_ids(torch.tensor([large, large])) == [large, large], "a larger original keeps its size"
