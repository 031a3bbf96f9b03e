from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from emuedit.models import image_tensors, text_to_image
from emuedit.models.text_to_image import TextToImageModel
from emuedit.synthesis.methods import ddim_inversion
from emuedit.synthesis.methods.prompt_to_prompt import ALL_LAYERS, PromptToPrompt, PromptToPromptEdit
from toyworld.scenes import caption_grammar, render
from toyworld.scenes.scene import generate_scenes, scene_numbers

WEIGHTS = Path(__file__).parents[3] / "toyworld/weights/base_model"
CAPTIONS, STEPS = ["a red star on grass", "two blue rings"], 4


def random_latents(base_model: TextToImageModel) -> torch.Tensor:
    return 0.7 * torch.randn(2, base_model.channels, 8, 8, generator=torch.Generator().manual_seed(0))


def ddim(base_model: TextToImageModel) -> Any:
    """The scheduler of diffusers, with its timesteps set."""
    scheduler = ddim_inversion.ddim_scheduler(base_model)
    scheduler.set_timesteps(STEPS)
    return scheduler


def test_inversion_undoes_the_step_of_the_scheduler(base_model: TextToImageModel) -> None:
    z_0, text = random_latents(base_model), base_model.encode_text(CAPTIONS)
    path, scheduler = ddim_inversion.invert(base_model, z_0, CAPTIONS, STEPS, iterations=1), ddim(base_model)
    assert path.shape == (STEPS + 1, *z_0.shape)
    assert torch.equal(path[-1], z_0)
    for i, t in enumerate(scheduler.timesteps):
        e = base_model.predict(path[i + 1], t, text).detach()
        assert_close(scheduler.step(e, t, path[i], return_dict=False)[0], path[i + 1], rtol=1e-4, atol=1e-4)


def test_for_eps_inversion_is_the_formula_of_the_paper(make_base_model: Callable[[str], TextToImageModel]) -> None:
    base_model = make_base_model("sd15")
    path = ddim_inversion.invert(base_model, random_latents(base_model), CAPTIONS, STEPS, iterations=1)
    alpha_bar, t = base_model.scheduler.alphas_cumprod, ddim(base_model).timesteps
    for i in range(1, STEPS):
        current, noisier = alpha_bar[t[i]], alpha_bar[t[i - 1]]
        e = base_model.predict(path[i], t[i - 1], base_model.encode_text(CAPTIONS)).detach()
        x_0 = (path[i] - (1 - current).sqrt() * e) / current.sqrt()
        assert_close(path[i - 1], noisier.sqrt() * x_0 + (1 - noisier).sqrt() * e, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_more_iterations_reduce_the_error_of_every_step(base_model: TextToImageModel) -> None:
    z_0, text = random_latents(base_model), base_model.encode_text(CAPTIONS)
    scheduler = ddim(base_model)

    def largest_error(iterations: int) -> float:
        path = ddim_inversion.invert(base_model, z_0, CAPTIONS, STEPS, iterations)
        errors = []
        for i, t in enumerate(scheduler.timesteps):
            e = base_model.predict(path[i], t, text).detach()
            errors.append((scheduler.step(e, t, path[i], return_dict=False)[0] - path[i + 1]).abs().mean())
        return float(torch.stack(errors).max())

    assert largest_error(8) < largest_error(1) / 2


@dataclass(frozen=True)
class RealImages:
    """The toy base model, latents of two images that it did not generate, their captions, and their inverted path."""

    base_model: TextToImageModel
    z_0: torch.Tensor
    captions: list[str]
    path: torch.Tensor

    def error(self, z: torch.Tensor) -> float:
        """Mean difference from the images, in [0, 1]."""
        return float((self.base_model.decode(z) - self.base_model.decode(self.z_0)).abs().mean() / 2)

    def regenerate(self, guidance_scale: float, path: torch.Tensor | None) -> tuple[float, float]:
        """The errors of the sources, and of edits without any control and with unchanged captions."""
        edits = [PromptToPromptEdit(g, caption, 0.0, 0.0, ALL_LAYERS, guidance_scale) for g, caption in enumerate(self.captions)]
        z_sources, z_edits = PromptToPrompt(self.base_model, 8).generate(self.captions, [1, 2], [guidance_scale] * 2, edits, path)
        return self.error(z_sources), self.error(z_edits)


@pytest.fixture(scope="module")
def real_images() -> RealImages:
    base_model = text_to_image.load(str(WEIGHTS))
    z_0 = base_model.encode(image_tensors.from_uint8(render.images(generate_scenes(scene_numbers("held_out", 0, 2)))))
    captions = caption_grammar.captions("held_out", 0, 2)
    return RealImages(base_model, z_0, captions, ddim_inversion.invert(base_model, z_0, captions, 8, 4))


@pytest.mark.slow
def test_real_images_are_reconstructed(real_images: RealImages) -> None:
    path_of_one_iteration = ddim_inversion.invert(real_images.base_model, real_images.z_0, real_images.captions, 8, 1)
    source_error, edit_error = real_images.regenerate(1.0, real_images.path)
    guided_source_error, guided_edit_error = real_images.regenerate(3.0, real_images.path)
    _, one_iteration_error = real_images.regenerate(1.0, path_of_one_iteration)
    assert source_error == guided_source_error == 0  # sources stay on the path, whatever the guidance
    assert edit_error < min(0.01, one_iteration_error / 2)  # edits start from the inverted noise and leave the path
    assert one_iteration_error < 0.05
    assert guided_edit_error > 3 * edit_error
    assert real_images.regenerate(1.0, None)[0] > one_iteration_error  # from random noise


@pytest.mark.slow
def test_edits_of_a_real_image_follow_its_self_attention(real_images: RealImages) -> None:
    plain = PromptToPromptEdit(0, real_images.captions[1], 0.0, 0.0, ALL_LAYERS, 3.0)
    edits = [plain, replace(plain, self_fraction=1.0)]
    _, z = PromptToPrompt(real_images.base_model, 8).generate(real_images.captions, [1, 2], [3.0] * 2, edits, real_images.path)
    plain_change, injected_change = (z - real_images.z_0[0]).abs().mean((1, 2, 3))
    assert 0 < injected_change < plain_change


def test_wrong_arguments_are_refused(base_model: TextToImageModel) -> None:
    z_0 = random_latents(base_model)
    with pytest.raises(ValueError, match="one caption per image, got 1 captions for 2 images"):
        ddim_inversion.invert(base_model, z_0, CAPTIONS[:1], STEPS, 1)
    with pytest.raises(ValueError, match="at least one iteration"):
        ddim_inversion.invert(base_model, z_0, CAPTIONS, STEPS, 0)
    path = ddim_inversion.invert(base_model, z_0, CAPTIONS, STEPS, 1)
    with pytest.raises(ValueError, match=r"a path of \(4, 2\).*got \(5, 2\); invert the images again"):
        PromptToPrompt(base_model, 3).generate(CAPTIONS, [1, 2], [1.0, 1.0], [], path)
