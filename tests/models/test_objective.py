from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from emuedit.core import diffusion
from emuedit.models import objective
from emuedit.models.denoising import Denoiser, memoryless_scheduler

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SD15: dict[str, Any] = BETAS | {"set_alpha_to_one": False, "skip_prk_steps": True}
SDXL: dict[str, Any] = BETAS | {"timestep_spacing": "leading"}
TOY: dict[str, Any] = BETAS | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def latents(n: int) -> torch.Tensor:
    return torch.randn(n, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_levels_are_those_at_which_diffusers_adds_noise() -> None:
    z, eps = latents(2)
    t = torch.tensor([0, 700])
    ddim = DDIMScheduler(**BETAS)
    torch.testing.assert_close(diffusion.add_noise(z, eps, *objective.noise_levels(ddim, t)), ddim.add_noise(z, eps, t))
    for shift in (1.0, 3.0):
        flow = FlowMatchEulerDiscreteScheduler(shift=shift)
        t = objective.training_timesteps(flow, torch.tensor([1, 700]))
        got = diffusion.add_noise(z, eps, *objective.noise_levels(flow, t))
        torch.testing.assert_close(got, flow.scale_noise(z, flow.timesteps[[-2, -701]], eps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_trained_at_the_timesteps_of_its_scheduler(shift: float) -> None:
    flow = FlowMatchEulerDiscreteScheduler(shift=shift)
    t = objective.training_timesteps(flow, torch.arange(1000))
    torch.testing.assert_close(t, flow.timesteps.flip(0))
    a, s = objective.noise_levels(flow, t[[0, -1]])
    assert s[0] > 0
    assert (a[-1].item(), s[-1].item()) == (0.0, 1.0)


def test_a_scheduler_that_states_no_prediction_type_is_an_error() -> None:
    for scheduler in (
        EDMEulerScheduler(),  # no alphas_cumprod
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ):
        with pytest.raises(ValueError, match=f"want a scheduler with alphas_cumprod.*got {type(scheduler).__name__}"):
            objective.prediction_type_of(scheduler)
        with pytest.raises(ValueError, match="use another base model"):
            objective.configure_scheduler(scheduler)
        with pytest.raises(ValueError, match="use another base model"):  # DDIM would have other noise levels
            memoryless_scheduler(scheduler)


@pytest.mark.parametrize("scheduler", [PNDMScheduler(**SD15), EulerDiscreteScheduler(**SDXL), DDIMScheduler(**TOY)])
def test_the_base_models_own_objective_keeps_its_scheduler(scheduler: Any) -> None:
    assert objective.configure_scheduler(scheduler) is scheduler
    assert objective.configure_scheduler(scheduler, objective.prediction_type_of(scheduler)) is scheduler


@pytest.mark.parametrize("base", [PNDMScheduler(**SD15), EulerDiscreteScheduler(**SDXL), DDPMScheduler(**BETAS)])
@pytest.mark.parametrize("objective_name", ["v_prediction", "sample"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_another_objective_keeps_the_betas_unless_they_are_rescaled(
    base: Any, objective_name: Any, zero_terminal_snr: bool
) -> None:
    scheduler = objective.configure_scheduler(base, objective_name, zero_terminal_snr)
    assert type(scheduler) is (DDPMScheduler if isinstance(base, DDPMScheduler) else DDIMScheduler)
    assert objective.prediction_type_of(scheduler) == objective_name
    assert not scheduler.config.clip_sample, "clipping would cut latents"
    if zero_terminal_snr:
        rescaled = DDIMScheduler(**BETAS, rescale_betas_zero_snr=True)
        torch.testing.assert_close(scheduler.alphas_cumprod, rescaled.alphas_cumprod)
        scheduler.set_timesteps(4)
        assert scheduler.timesteps[0] == 999, "sampling starts at the last timestep"
    else:
        torch.testing.assert_close(scheduler.alphas_cumprod, base.alphas_cumprod)
    again = type(scheduler).from_config(dict(scheduler.config))  # as it is read from the editor's folder
    torch.testing.assert_close(again.alphas_cumprod, scheduler.alphas_cumprod, rtol=0, atol=0)


def test_flow_takes_the_flow_matching_scheduler() -> None:
    scheduler = objective.configure_scheduler(PNDMScheduler(**SD15, num_train_timesteps=500), "flow")
    assert type(scheduler) is FlowMatchEulerDiscreteScheduler
    assert (scheduler.config.num_train_timesteps, scheduler.config.shift) == (500, 1.0)
    for objective_name in ("base", "flow"):
        assert objective.configure_scheduler(scheduler, objective_name, zero_terminal_snr=True) is scheduler  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"want the objective base or flow.*got 'epsilon'"):
        objective.configure_scheduler(scheduler, "epsilon")


def test_an_unknown_objective_is_an_error() -> None:
    with pytest.raises(ValueError, match="one of the objectives base, epsilon, v_prediction, sample, flow; got 'score'"):
        objective.configure_scheduler(PNDMScheduler(**SD15), "score")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scheduler", "objective_name", "zero_terminal_snr"),
    [
        (PNDMScheduler(**SD15), "base", True),
        (EulerDiscreteScheduler(**SDXL), "epsilon", True),
        (DDIMScheduler(**TOY), "epsilon", False),
        (DDIMScheduler(**BETAS, rescale_betas_zero_snr=True), "base", False),
        (EulerDiscreteScheduler(**SDXL, rescale_betas_zero_snr=True), "base", False),
        (DDPMScheduler(trained_betas=[0.1, 0.5, 1.0], num_train_timesteps=3), "base", False),
    ],
)
def test_epsilon_with_zero_terminal_snr_is_refused(scheduler: Any, objective_name: Any, zero_terminal_snr: bool) -> None:
    with pytest.raises(ValueError, match="want v_prediction, sample or flow with zero terminal SNR, got epsilon"):
        objective.configure_scheduler(scheduler, objective_name, zero_terminal_snr)
    if objective_name == "base" and not zero_terminal_snr:
        with pytest.raises(ValueError, match="got epsilon"):
            Denoiser(scheduler, 4, torch.device("cpu"))


def test_epsilon_with_zero_terminal_snr_has_no_answer() -> None:
    """Why it is refused: DDIM's first step divides by zero, even with the exact prediction."""
    scheduler = DDIMScheduler(**BETAS, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(4)
    eps = latents(1)[0]
    assert scheduler.step(eps, scheduler.timesteps[0], eps).prev_sample.isnan().all()


@pytest.mark.parametrize(
    ("objective_name", "zero_terminal_snr"),
    [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True), ("flow", False)],
)
def test_denoising_with_a_perfect_network_gives_the_clean_latents(objective_name: Any, zero_terminal_snr: bool) -> None:
    scheduler = objective.configure_scheduler(DDIMScheduler(**BETAS, clip_sample=False), objective_name, zero_terminal_snr)
    denoiser = Denoiser(scheduler, 5, torch.device("cpu"), [torch.Generator().manual_seed(seed) for seed in range(2)])
    z, noise = latents(2)
    z_t = denoiser.start(noise)
    for t in denoiser.timesteps:
        z_t = denoiser.scale(z_t, t)
        z_t = denoiser.step(
            diffusion.prediction_for_clean(z, z_t, *denoiser.noise_levels(t, z_t), denoiser.prediction_type), t, z_t
        )
    torch.testing.assert_close(z_t, z, rtol=0, atol=1e-4)


@pytest.mark.parametrize("objective_name", ["v_prediction", "flow"])
def test_noised_latents_are_denoised_from_the_middle(objective_name: Any) -> None:
    scheduler = objective.configure_scheduler(PNDMScheduler(**BETAS, set_alpha_to_one=True), objective_name)
    denoiser = Denoiser(scheduler, 6, torch.device("cpu"))
    z, noise = latents(2)
    z_t = denoiser.add_noise(z, noise, denoiser.timesteps[3])
    for t in denoiser.timesteps[3:]:
        z_t = denoiser.step(
            diffusion.prediction_for_clean(z, z_t, *denoiser.noise_levels(t, z_t), denoiser.prediction_type), t, z_t
        )
    torch.testing.assert_close(z_t, z, rtol=0, atol=1e-4)


def test_a_flow_scheduler_needs_no_history() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    assert memoryless_scheduler(scheduler) is scheduler
