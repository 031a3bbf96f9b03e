from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from emuedit.models import image_tensors, text_to_image
from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.methods import ddim_inversion
from emuedit.synthesis.methods.prompt_to_prompt import EVERYWHERE, Edit, PromptToPrompt
from toyworld.scenes import caption_grammar, render
from toyworld.scenes.scene import numbers, scenes

WEIGHTS = Path(__file__).parents[2] / "toyworld/weights/base_model"
CAPTIONS, STEPS = ["a red star on grass", "two blue rings"], 4


def latents(base_model: TextToImageModel) -> torch.Tensor:
    return 0.7 * torch.randn(2, base_model.channels, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_way_back_undoes_the_schedulers_step(base_model: TextToImageModel) -> None:
    z_0, text = latents(base_model), base_model.encode_text(CAPTIONS)
    got, scheduler = ddim_inversion.path(base_model, z_0, CAPTIONS, STEPS, iterations=1), ddim_inversion.ddim(base_model, STEPS)
    assert got.shape == (STEPS + 1, *z_0.shape)
    assert torch.equal(got[-1], z_0)
    for i, t in enumerate(scheduler.timesteps):
        e = base_model.predict(got[i + 1], t, text).detach()
        assert_close(scheduler.step(e, t, got[i], return_dict=False)[0], got[i + 1], rtol=1e-4, atol=1e-4)


def test_the_formula_of_the_paper_for_eps(painted_by: Callable[[str], TextToImageModel]) -> None:
    base_model = painted_by("sd15")
    z_0 = latents(base_model)
    got = ddim_inversion.path(base_model, z_0, CAPTIONS, STEPS, iterations=1)
    levels, t = base_model.scheduler.alphas_cumprod, ddim_inversion.ddim(base_model, STEPS).timesteps
    for i in range(1, STEPS):
        now, then = levels[t[i]], levels[t[i - 1]]  # a step towards the noise
        e = base_model.predict(got[i], t[i - 1], base_model.encode_text(CAPTIONS)).detach()
        x_0 = (got[i] - (1 - now).sqrt() * e) / now.sqrt()
        assert_close(got[i - 1], then.sqrt() * x_0 + (1 - then).sqrt() * e, rtol=1e-4, atol=1e-4)


def test_with_more_iterations_each_step_leads_back_better(base_model: TextToImageModel) -> None:
    z_0, text = latents(base_model), base_model.encode_text(CAPTIONS)
    scheduler = ddim_inversion.ddim(base_model, STEPS)

    def away(iterations: int) -> float:
        path = ddim_inversion.path(base_model, z_0, CAPTIONS, STEPS, iterations)
        steps = []
        for i, t in enumerate(scheduler.timesteps):
            e = base_model.predict(path[i], t, text).detach()
            steps.append((scheduler.step(e, t, path[i], return_dict=False)[0] - path[i + 1]).abs().mean())
        return float(torch.stack(steps).max())

    assert away(8) < away(1) / 2


@dataclass(frozen=True)
class Real:
    """The toy base_model and pictures that it did not paint: latents, captions, and the way to them with four iterations."""

    base_model: TextToImageModel
    z_0: torch.Tensor
    captions: list[str]
    path: torch.Tensor

    def away(self, z: torch.Tensor) -> float:
        """Mean difference from the pictures, in [0, 1]."""
        return float((self.base_model.decode(z) - self.base_model.decode(self.z_0)).abs().mean() / 2)

    def generate(self, guidance: float, path: torch.Tensor | None) -> tuple[float, float]:
        """How far sources, and edits that want nothing, end from the pictures."""
        same = [Edit(g, caption, 0.0, 0.0, EVERYWHERE, guidance) for g, caption in enumerate(self.captions)]
        source, edit = PromptToPrompt(self.base_model, 8).generate(self.captions, [1, 2], [guidance] * 2, same, path)
        return self.away(source), self.away(edit)


@pytest.fixture(scope="module")
def real() -> Real:
    base_model = text_to_image.load(str(WEIGHTS))
    z_0 = base_model.encode(image_tensors.from_uint8(render.images(scenes(numbers("held_out", 0, 2)))))
    captions = caption_grammar.captions("held_out", 0, 2)
    return Real(base_model, z_0, captions, ddim_inversion.path(base_model, z_0, captions, 8, 4))


def test_a_real_picture_comes_back(real: Real) -> None:
    once = ddim_inversion.path(real.base_model, real.z_0, real.captions, 8, 1)
    (kept, better), (guided, lost), (_, plain) = (
        real.generate(1.0, real.path),
        real.generate(3.0, real.path),
        real.generate(1.0, once),
    )
    assert kept == guided == 0  # on the path, whatever the guidance
    assert better < min(0.01, plain / 2)  # off the path, from its noise
    assert plain < 0.05
    assert lost > 3 * better
    assert real.generate(1.0, None)[0] > plain  # from any noise


def test_edits_of_a_real_picture_lean_on_its_attention(real: Real) -> None:
    free = Edit(0, real.captions[1], 0.0, 0.0, EVERYWHERE, 3.0)
    held = replace(free, self_fraction=1.0)
    _, z = PromptToPrompt(real.base_model, 8).generate(real.captions, [1, 2], [3.0] * 2, [free, held], real.path)
    far, near = (z - real.z_0[0]).abs().mean((1, 2, 3))
    assert 0 < near < far


def test_wrong_wishes_are_named(base_model: TextToImageModel) -> None:
    z_0 = latents(base_model)
    with pytest.raises(ValueError, match="one caption a picture, got 1 for 2"):
        ddim_inversion.path(base_model, z_0, CAPTIONS[:1], STEPS, 1)
    with pytest.raises(ValueError, match="at least one iteration"):
        ddim_inversion.path(base_model, z_0, CAPTIONS, STEPS, 0)
    path = ddim_inversion.path(base_model, z_0, CAPTIONS, STEPS, 1)
    with pytest.raises(ValueError, match=r"a path of \(4, 2\).*got \(5, 2\); invert anew"):
        PromptToPrompt(base_model, 3).generate(CAPTIONS, [1, 2], [1.0, 1.0], [], path)
