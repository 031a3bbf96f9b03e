from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.synthesis.methods import diffedit
from emuedit.synthesis.methods.diffedit import Contrast, NoiseDifference
from emuedit.synthesis.sampler import Sampler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

PAPER = NoiseDifference(strength=0.5, n_noises=3, threshold=0.5)
ASKED = Contrast(0, "a red star on grass", "a blue star on grass", PAPER)
STEPS = 4


class Told:
    """Predicts noise that depends on z_t everywhere, and on the caption (its number of letters) where a map [h, w] says so."""

    device = torch.device("cpu")

    def __init__(self, where: torch.Tensor, kind: str = "epsilon") -> None:
        from diffusers import DDIMScheduler

        self.where, self.kind, self.seen = where, kind, list[tuple[int, int]]()
        self.scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, steps_offset=1, timestep_spacing="trailing")

    def encode_text(self, captions: Sequence[str]) -> TextCondition:
        return TextCondition(torch.tensor([float(len(one)) for one in captions]).view(-1, 1, 1))

    def predict(self, z_t: torch.Tensor, t: torch.Tensor, text: TextCondition) -> torch.Tensor:
        self.seen.append((len(z_t), int(t)))
        eps = 0.3 * z_t + self.where * text.hidden.view(-1, 1, 1, 1) * (1 + z_t.abs())
        if self.kind == "epsilon":
            return eps
        alpha = self.scheduler.alphas_cumprod[int(t)]
        v: torch.Tensor = (eps - (1 - alpha).sqrt() * z_t) / alpha.sqrt()
        return v


def square(value: float = 1.0) -> torch.Tensor:
    where = torch.zeros(8, 8)
    where[2:5, 1:4] = value
    return where


def asked(base_model: Any, *wanted: Contrast, rows: int = 64, sources: int = 2) -> list[torch.Tensor | str]:
    z_0 = torch.randn(sources, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return diffedit.found(Sampler(base_model, STEPS), z_0, [7, 8][:sources], wanted, (16, 16), rows)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("factor", [1.0, 1e-4])
def test_predictions_that_differ_in_a_square_give_the_square(kind: str, factor: float) -> None:
    base_model = Told(square(factor), kind)
    (P,) = asked(base_model, replace(ASKED, after="grass"))
    assert isinstance(P, torch.Tensor)
    assert torch.equal(P, square().bool().repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert {t for _, t in base_model.seen} == {499}  # half of the way, as the paper has it


def test_what_the_painter_predicts_does_not_matter() -> None:
    soft = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) ** 3
    (eps,), (v,) = (asked(Told(soft, kind), replace(ASKED, after="grass")) for kind in ("epsilon", "v_prediction"))
    assert isinstance(eps, torch.Tensor)
    assert isinstance(v, torch.Tensor)
    assert torch.equal(eps, v)
    assert 0 < eps.float().mean() < 0.5


def test_differences_are_averaged_clamped_and_rescaled() -> None:
    e = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    e[2] = e[0]  # the same as the source
    d = sum((e[1, n, c] - e[0, n, c]).abs() for n in range(2) for c in range(4)) / 8
    got = diffedit.rescaled(e)
    assert_close(got[0], d.clamp(max=3 * d.mean()) / (3 * d.mean()))
    assert not got[1].any()


def test_captions_that_do_not_differ_have_no_mask() -> None:
    base_model = Told(square())
    got = asked(base_model, replace(ASKED, after=ASKED.before), replace(ASKED, after="a red star on grasS"))
    assert got == ["no_difference"] * 2  # the same caption; another one that this base_model reads alike
    assert len(base_model.seen) == 1


def test_the_source_is_asked_once_for_all_its_captions() -> None:
    base_model = Told(square())
    wanted = [replace(ASKED, after="grass"), replace(ASKED, after="snow by night"), replace(ASKED, source=1, after="grass")]
    asked(base_model, *wanted, rows=4)
    assert [rows for rows, _ in base_model.seen] == [4, 4, 1, 4, 2]  # (1 + 2) captions of 3 noises, then (1 + 1)


def test_real_shapes_depend_on_their_own_seed_only(base_model: TextToImageModel) -> None:
    z_0 = torch.randn(2, base_model.channels, 8, 8, generator=torch.Generator().manual_seed(3))
    wanted = [ASKED, replace(ASKED, source=1, before="two blue rings", after="two red rings at night")]
    sampler = Sampler(base_model, STEPS)

    def of(*some: Contrast, seeds: Sequence[int] = (7, 8), rows: int = 5) -> torch.Tensor:
        found = diffedit.found(sampler, z_0, seeds, some, (16, 16), rows)
        return torch.stack([P for P in found if isinstance(P, torch.Tensor)])

    both = of(*wanted)
    assert both.shape == (2, 16, 16)
    assert both.dtype == torch.bool
    assert 0 < both.float().mean() < 1
    assert torch.equal(of(*wanted), both)
    assert (of(wanted[1], rows=64) != both[1]).float().mean() < 0.05  # the U-Net rounds differently in another batch
    assert not torch.equal(of(*wanted, seeds=(9, 8))[0], both[0])


def test_schedulers_that_scale_their_input_serve_too(painted_by: Any) -> None:
    from diffusers import EulerDiscreteScheduler

    where = "beta_schedule", "beta_start", "beta_end", "steps_offset", "timestep_spacing"
    ddim = painted_by("sd15")
    euler = painted_by("sd15", EulerDiscreteScheduler(**{name: ddim.scheduler.config[name] for name in where}))
    (one,), (other,) = asked(ddim, ASKED), asked(euler, ASKED)
    assert isinstance(one, torch.Tensor)
    assert isinstance(other, torch.Tensor)
    assert (one != other).float().mean() < 0.05  # the same noise level, the same question


def test_wrong_wishes_are_named() -> None:
    with pytest.raises(ValueError, match="one seed a source, got 2 for 3"):
        diffedit.found(Sampler(Told(square()), STEPS), torch.zeros(3, 4, 8, 8), [7, 8], [ASKED], (16, 16), 4)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="greater than 0"):
        NoiseDifference(strength=0.0, n_noises=10, threshold=0.5)
