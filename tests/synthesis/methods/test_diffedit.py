from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.synthesis.methods import diffedit
from emuedit.synthesis.methods.diffedit import CaptionContrast, NoiseDifference
from emuedit.synthesis.rejection import Rejected
from emuedit.synthesis.sampler import Sampler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

PARAMS = NoiseDifference(strength=0.5, n_noises=3, threshold=0.5)
CONTRAST = CaptionContrast(0, "a red star on grass", "a blue star on grass", PARAMS)
STEPS = 4


class FakeModel:
    """Predicts noise that depends on z_t, and on the caption's length in proportion to `sensitivity` [h, w]."""

    device = torch.device("cpu")

    def __init__(self, sensitivity: torch.Tensor, prediction_type: str = "epsilon") -> None:
        from diffusers import DDIMScheduler

        self.sensitivity, self.prediction_type, self.calls = sensitivity, prediction_type, list[tuple[int, int]]()
        self.scheduler = DDIMScheduler(
            prediction_type=prediction_type, clip_sample=False, steps_offset=1, timestep_spacing="trailing"
        )

    def encode_text(self, captions: Sequence[str]) -> TextCondition:
        return TextCondition(torch.tensor([float(len(caption)) for caption in captions]).view(-1, 1, 1))

    def predict(self, z_t: torch.Tensor, t: torch.Tensor, text: TextCondition) -> torch.Tensor:
        self.calls.append((len(z_t), int(t)))
        eps = 0.3 * z_t + self.sensitivity * text.hidden.view(-1, 1, 1, 1) * (1 + z_t.abs())
        if self.prediction_type == "epsilon":
            return eps
        alpha_bar = self.scheduler.alphas_cumprod[int(t)]
        v: torch.Tensor = (eps - (1 - alpha_bar).sqrt() * z_t) / alpha_bar.sqrt()
        return v


def square(value: float = 1.0) -> torch.Tensor:
    sensitivity = torch.zeros(8, 8)
    sensitivity[2:5, 1:4] = value
    return sensitivity


def compute_masks(
    base_model: Any, *contrasts: CaptionContrast, rows: int = 64, sources: int = 2
) -> list[torch.Tensor | Rejected]:
    z_0 = torch.randn(sources, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return diffedit.difference_masks(Sampler(base_model, STEPS), z_0, [7, 8][:sources], contrasts, (16, 16), rows)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("factor", [1.0, 1e-4])
def test_predictions_that_differ_in_a_square_give_the_square(prediction_type: str, factor: float) -> None:
    base_model = FakeModel(square(factor), prediction_type)
    (P,) = compute_masks(base_model, replace(CONTRAST, after="grass"))
    assert isinstance(P, torch.Tensor)
    assert torch.equal(P, square().bool().repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert {t for _, t in base_model.calls} == {499}  # half of the 1000 training timesteps, as in the paper


def test_the_mask_does_not_depend_on_the_prediction_type() -> None:
    sensitivity = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) ** 3
    (P_eps,), (P_v,) = (
        compute_masks(FakeModel(sensitivity, prediction_type), replace(CONTRAST, after="grass"))
        for prediction_type in ("epsilon", "v_prediction")
    )
    assert isinstance(P_eps, torch.Tensor)
    assert isinstance(P_v, torch.Tensor)
    assert torch.equal(P_eps, P_v)
    assert 0 < P_eps.float().mean() < 0.5


def test_differences_are_averaged_clamped_and_rescaled() -> None:
    e = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    e[2] = e[0]  # the same as the source
    d = sum((e[1, n, c] - e[0, n, c]).abs() for n in range(2) for c in range(4)) / 8
    D = diffedit.rescale_differences(e)
    assert_close(D[0], d.clamp(max=3 * d.mean()) / (3 * d.mean()))
    assert not D[1].any()


def test_predictions_that_do_not_differ_are_rejected() -> None:
    base_model = FakeModel(square())
    same_caption, same_prediction = replace(CONTRAST, after=CONTRAST.before), replace(CONTRAST, after="a red star on grasS")
    assert compute_masks(base_model, same_caption, same_prediction) == [Rejected("no_difference")] * 2
    assert len(base_model.calls) == 1


def test_the_source_is_predicted_once_for_all_contrasts() -> None:
    base_model = FakeModel(square())
    afters = ["grass", "snow by night"]
    contrasts = [*(replace(CONTRAST, after=after) for after in afters), replace(CONTRAST, source=1, after="grass")]
    compute_masks(base_model, *contrasts, rows=4)
    assert [rows for rows, _ in base_model.calls] == [4, 4, 1, 4, 2]  # (1 + 2) captions of 3 noises, then (1 + 1)


@pytest.mark.slow
def test_masks_of_real_architectures_depend_on_their_own_seed_only(base_model: TextToImageModel) -> None:
    z_0 = torch.randn(2, base_model.channels, 8, 8, generator=torch.Generator().manual_seed(3))
    contrasts = [CONTRAST, replace(CONTRAST, source=1, before="two blue rings", after="two red rings at night")]
    sampler = Sampler(base_model, STEPS)

    def stack_masks(*selected: CaptionContrast, seeds: Sequence[int] = (7, 8), rows: int = 5) -> torch.Tensor:
        masks = diffedit.difference_masks(sampler, z_0, seeds, selected, (16, 16), rows)
        return torch.stack([P for P in masks if isinstance(P, torch.Tensor)])

    masks = stack_masks(*contrasts)
    assert masks.shape == (2, 16, 16)
    assert masks.dtype == torch.bool
    assert 0 < masks.float().mean() < 1
    assert torch.equal(stack_masks(*contrasts), masks)
    assert (stack_masks(contrasts[1], rows=64) != masks[1]).float().mean() < 0.05  # rounding depends on the batch size
    assert not torch.equal(stack_masks(*contrasts, seeds=(9, 8))[0], masks[0])


@pytest.mark.slow
def test_a_scheduler_that_scales_its_input_gives_the_same_mask(make_base_model: Any) -> None:
    from diffusers import EulerDiscreteScheduler

    options = "beta_schedule", "beta_start", "beta_end", "steps_offset", "timestep_spacing"
    ddim = make_base_model("sd15")
    euler = make_base_model("sd15", EulerDiscreteScheduler(**{name: ddim.scheduler.config[name] for name in options}))
    (P_ddim,), (P_euler,) = compute_masks(ddim, CONTRAST), compute_masks(euler, CONTRAST)
    assert isinstance(P_ddim, torch.Tensor)
    assert isinstance(P_euler, torch.Tensor)
    assert (P_ddim != P_euler).float().mean() < 0.05  # both have the same noise level


def test_wrong_arguments_are_refused() -> None:
    sampler = Sampler(FakeModel(square()), STEPS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one seed per source, got 2 seeds for 3 sources"):
        diffedit.difference_masks(sampler, torch.zeros(3, 4, 8, 8), [7, 8], [CONTRAST], (16, 16), 4)
    with pytest.raises(ValidationError, match="greater than 0"):
        NoiseDifference(strength=0.0, n_noises=10, threshold=0.5)
