import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from emuedit.editor import pipeline_images, sampling
from emuedit.editor.edit_pipeline import EmuEditPipeline
from emuedit.editor.sampling_options import Edited
from emuedit.editor.settings import EditSettings, SettingsError
from emuedit.models.image_tensors import from_uint8, to_uint8
from emuedit.tasks import UnknownTaskError
from tests.editor.tiny_pipelines import KINDS

EditorFolder = Callable[[str], Path]
CHANGES: dict[str, float] = {
    "image_guidance_scale": 1.3, "guidance_scale": 3.0, "guidance_rescale": 0.5, "preserve": 0.5, "change_threshold": 0.05,
    "background_threshold": 0.3, "border_px": 5, "against_reconstruction": 0,
}  # fmt: skip
SETTINGS, ARGUMENTS = EditSettings().with_changes({"steps": 2, **CHANGES}), {"num_inference_steps": 2, **CHANGES}
FAST: dict[str, Any] = {"num_inference_steps": 1, "image_guidance_scale": 1.0, "guidance_scale": 1.0, "task": "local"}


def pixels(n: int = 1, height: int = 16, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def pipe(editor_folder: EditorFolder) -> EmuEditPipeline:
    """A random editor of the toy model, without a progress bar."""
    pipeline = EmuEditPipeline.from_pretrained(editor_folder("toy"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_gives_the_pixels_of_the_sampler(kind: str, editor_folder: EditorFolder) -> None:
    prompts, tasks = ["make it red", "a ring"], ["local", "sketch"]
    sampler = sampling.load(editor_folder(kind))
    want = to_uint8(sampler.sample(from_uint8(pixels(2)), prompts, tasks, SETTINGS, [3, 4]).images)
    pipe = EmuEditPipeline.from_pretrained(editor_folder(kind))
    pipe.set_progress_bar_config(disable=True)
    images = [Image.fromarray(picture) for picture in pixels(2)]
    output = pipe(prompt=prompts, image=images, task=tasks, generator=seeded(3, 4), **ARGUMENTS)
    assert [image.size for image in output.images] == [(20, 16)] * 2
    # the weights of two loads lie at other addresses, so that sums may round apart
    difference = np.abs(np.stack(output.images).astype(int) - want)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.005


def test_arguments_have_the_names_of_diffusers() -> None:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    not_ours = {"eta", "prompt_embeds", "negative_prompt_embeds", "ip_adapter_image", "ip_adapter_image_embeds",
                "cross_attention_kwargs"}  # fmt: skip
    diffusers_names = set(inspect.signature(StableDiffusionInstructPix2PixPipeline.__call__).parameters) - not_ours - {"kwargs"}
    our_names = set(inspect.signature(EmuEditPipeline.__call__).parameters)
    assert our_names - diffusers_names == {
        "task",
        "guidance_rescale",
        "preserve",
        "composite",
        "border_px",
        "change_threshold",
        "background_threshold",
        "against_reconstruction",
    }
    assert diffusers_names <= our_names


def test_every_argument_is_passed_on(pipe: EmuEditPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[EditSettings] = []

    def sample(sampler: Any, images: Tensor, prompts: Any, tasks: Any, settings: EditSettings, *_: Any, **options: Any) -> Edited:
        passed.append(settings)
        return Edited(images, (None,) * len(images))

    monkeypatch.setattr(sampling.EditSampler, "sample", sample)
    pipe("make it red", pixels()[0], "local", composite=0, **ARGUMENTS)
    assert passed == [SETTINGS.with_changes({"composite": 0})]
    parameters = set(inspect.signature(EmuEditPipeline.__call__).parameters)
    assert parameters & set(EditSettings.model_fields) == {"composite", *CHANGES}


@pytest.mark.slow
def test_pictures_of_every_type_give_the_same_edit(pipe: EmuEditPipeline) -> None:
    picture = pixels()[0]
    floats = picture.astype(np.float32) / 255
    inputs = [Image.fromarray(picture), picture, floats, torch.from_numpy(floats).permute(2, 0, 1), [Image.fromarray(picture)],
              picture[None], torch.from_numpy(floats).permute(2, 0, 1)[None]]  # fmt: skip
    outputs = [np.asarray(pipe("make it red", image, generator=seeded(1)[0], **FAST).images[0], np.int16) for image in inputs]
    for output in outputs:
        assert np.abs(output - outputs[0]).max() <= 1
    with pytest.raises(ValueError, match=r"want images of one size, got \(H, W\) \[\(16, 20\), \(16, 24\)\]"):
        pipe("make it red", [picture, pixels(width=24)[0]], **FAST)
    with pytest.raises(ValueError, match=r"values in \[0, 1\], got \[-0.5, 0.5\]; rescale it"):
        pipe("make it red", torch.tensor([-0.5, 0.5]).repeat(3, 16, 8), **FAST)
    with pytest.raises(ValueError, match=r"want a PIL image.*got ndarray float64 \(16, 20\)"):
        pipe("make it red", np.zeros((16, 20)), **FAST)
    with pytest.raises(ValueError, match=r"want a PIL image.*got Image F"):
        pipe("make it red", Image.new("F", (20, 16)), **FAST)
    clear = Image.new("RGBA", (20, 16), (200, 0, 0, 0))
    assert (pipeline_images.read_images(clear) == 1).all(), "transparency is composited on white"


@pytest.mark.slow
@pytest.mark.parametrize("output_type", pipeline_images.OUTPUT_TYPES)
def test_output_types_are_those_of_diffusers(output_type: str, pipe: EmuEditPipeline) -> None:
    call: dict[str, Any] = {"prompt": "make it red", "image": pixels(2), **FAST}
    (images,) = pipe(**call, generator=seeded(1, 2), output_type=output_type, return_dict=False)
    want = np.stack(pipe(**call, generator=seeded(1, 2)).images) / 255
    if output_type == "pt":
        assert images.dtype == torch.float32
        images = images.permute(0, 2, 3, 1).numpy()
    got = np.stack(images) / 255 if output_type == "pil" else images
    assert np.abs(got - want).max() <= 0.5 / 255 + 1e-6
    with pytest.raises(ValueError, match="want one of the output types pil, np, pt; got 'latent'"):
        pipe(**call, output_type="latent")


@pytest.mark.slow
def test_results_of_a_prompt_follow_each_other_and_have_noise_of_their_own(pipe: EmuEditPipeline) -> None:
    call: dict[str, Any] = {"prompt": ["make it red", "a star"], "image": pixels()[0], "output_type": "pt", **FAST}
    four = pipe(**call, num_images_per_prompt=2, generator=seeded(1, 2, 3, 4)).images
    first = pipe(**call, generator=seeded(1, 3)).images
    torch.testing.assert_close(four[::2], first, rtol=1e-4, atol=1e-4)
    assert not torch.equal(four[0], four[1])
    with pytest.raises(ValueError, match="want one generator, or one for each of the 2 results; got 3"):
        pipe(**call, generator=seeded(1, 2, 3))
    with pytest.raises(ValueError, match="want one task, or one for each of the 2 images; got 3"):
        pipe(**call | {"task": ["local"] * 3})
    with pytest.raises(ValueError, match="want one prompt, or one for each of the 3 images; got 2"):
        pipe(**call | {"image": pixels(3)})
    with pytest.raises(ValueError, match="want one image, or one for each of the 3 prompts; got 2 images"):
        pipe(**call | {"image": pixels(2), "prompt": ["make it red"] * 3})


@pytest.mark.slow
def test_noise_is_drawn_from_the_generator_or_from_torch_or_given(pipe: EmuEditPipeline) -> None:
    call: dict[str, Any] = {"prompt": "make it red", "image": pixels(2, 16, 16), "output_type": "pt", **FAST}
    from_generator = pipe(**call, generator=seeded(5)[0]).images
    torch.manual_seed(5)
    assert torch.equal(pipe(**call).images, from_generator)
    assert not torch.equal(pipe(**call).images, from_generator)
    generator = torch.Generator().manual_seed(5)
    noise = torch.cat([torch.randn(1, 8, 8, 8, generator=generator) for _ in range(2)])
    assert torch.equal(pipe(**call, latents=noise).images, from_generator)
    with pytest.raises(ValueError, match=r"want latents \(2, 8, 8, 8\).*got \(1, 8, 8, 8\)"):
        pipe(**call, latents=noise[:1])


@pytest.mark.slow
def test_a_negative_prompt_takes_the_place_of_the_null_text(pipe: EmuEditPipeline) -> None:
    call: dict[str, Any] = {"prompt": "make it red", "image": pixels()[0], "task": "local", "output_type": "pt"} | ARGUMENTS
    without = pipe(**call, generator=seeded(1)[0]).images
    assert torch.equal(pipe(**call, negative_prompt="", generator=seeded(1)[0]).images, without)
    assert not torch.equal(pipe(**call, negative_prompt="a star", generator=seeded(1)[0]).images, without)


@pytest.mark.slow
def test_a_callback_sees_every_step_and_may_replace_the_latents(pipe: EmuEditPipeline) -> None:
    steps: list[int] = []

    def keep_zero(pipeline: EmuEditPipeline, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert pipeline is pipe
        steps.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    call: dict[str, Any] = {"image": pixels(1, 16, 16), "prompt": "make it red", "output_type": "pt", "change_threshold": 0.0}
    call |= {"composite": 0}
    got = pipe(**call, **FAST | {"num_inference_steps": 3}, callback_on_step_end=keep_zero).images
    assert steps == [0, 1, 2]
    want = pipe.sampler().parts.decode(torch.zeros(1, 8, 8, 8)) / 2 + 0.5
    torch.testing.assert_close(got, want)
    assert torch.equal(
        pipe(**call, **FAST, generator=seeded(1)[0], callback_on_step_end=lambda *_: {}).images,
        pipe(**call, **FAST, generator=seeded(1)[0]).images,
    )
    with pytest.raises(ValueError, match=r"want callback tensors from \['latents'\], got \['noise'\]"):
        pipe(**call, **FAST, callback_on_step_end=keep_zero, callback_on_step_end_tensor_inputs=["noise"])


def test_a_task_must_be_named_and_trained(pipe: EmuEditPipeline) -> None:
    with pytest.raises(UnknownTaskError, match=r"local, remove.*got 'remov'; did you mean 'remove'\?"):
        pipe("make it red", pixels()[0], **FAST | {"task": "remov"})
    with pytest.raises(ValueError, match=r"want one of the tasks local, remove.*got none; name it, or use emuedit\.Editor"):
        pipe("make it red", pixels()[0], **FAST | {"task": None})
    with pytest.raises(SettingsError, match="steps: Input should be greater than or equal to 1, got 0"):
        pipe("make it red", pixels()[0], **FAST | {"num_inference_steps": 0})


@pytest.mark.slow
def test_the_scheduler_may_be_replaced(pipe: EmuEditPipeline) -> None:
    from diffusers import DDPMScheduler

    call: dict[str, Any] = (
        {"prompt": "make it red", "image": pixels()[0], "output_type": "pt"} | FAST | {"num_inference_steps": 3}
    )
    before = pipe(**call, generator=seeded(1)[0]).images
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    assert not torch.equal(pipe(**call, generator=seeded(1)[0]).images, before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
def test_the_pipeline_is_loaded_in_another_dtype_and_runs_in_it(argument: str, editor_folder: EditorFolder) -> None:
    pipe = EmuEditPipeline.from_pretrained(editor_folder("sd15"), **{argument: torch.bfloat16})
    pipe.set_progress_bar_config(disable=True)
    assert pipe.dtype == pipe.unet.dtype == pipe.text_encoder.dtype == pipe.vae.dtype == torch.bfloat16
    assert pipe.task_embedding.dtype == torch.float32
    low = pipe("make it red", pixels()[0], generator=seeded(1)[0], output_type="pt", **FAST).images
    pipe.to(torch.float32)
    high = pipe("make it red", pixels()[0], generator=seeded(1)[0], output_type="pt", **FAST).images
    assert (low - high).abs().mean() < 0.02
    assert not torch.equal(low, high)


@pytest.mark.slow
def test_parts_may_be_offloaded(editor_folder: EditorFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU takes the place of the accelerator; hooks are placed and called as there."""
    pipe = EmuEditPipeline.from_pretrained(editor_folder("sdxl"))
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"prompt": "make it red", "image": pixels()[0], "output_type": "pt", **FAST}
    before = pipe(**call, generator=seeded(1)[0]).images
    pipe.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(part, "_hf_hook") for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2))
    frees: list[str] = []
    free = pipe.maybe_free_model_hooks
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: (frees.append("all parts"), free()))
    for n_calls in (1, 2):
        torch.testing.assert_close(pipe(**call, generator=seeded(1)[0]).images, before)
        assert len(frees) == n_calls


def offload_sequentially(pipe: EmuEditPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_offload = accelerate.cpu_offload

    def offload(model: nn.Module, device: torch.device, **options: Any) -> None:
        cpu_offload(model, torch.device(device.type), **options)  # diffusers' cpu:0, unlike cuda:0, turns parameters into tensors

    monkeypatch.setattr(accelerate, "cpu_offload", offload)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert pipe.vae.device.type == "meta"


def offload_groups(pipe: EmuEditPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize("options", [{}, {"exclude_modules": "vae"}, {"offload_type": "leaf_level"}])
def test_the_task_embedding_is_in_no_offloaded_group(options: dict[str, Any], pipe: EmuEditPipeline, tmp_path: Path) -> None:
    """On disk, tensors of a group that is not loaded are uninitialised."""
    v = pipe.task_embedding.rows(["local"]).clone()
    options = {"num_blocks_per_group": 1, "offload_to_disk_path": str(tmp_path)} | options
    pipe.enable_group_offload(torch.device("cpu"), **options)
    assert not any(hasattr(part, "_diffusers_hook") for part in pipe.task_embedding.modules())
    assert torch.equal(pipe.task_embedding.rows(["local"]), v)


def test_the_sampler_has_the_number_format_of_the_pipeline(editor_folder: EditorFolder) -> None:
    pipe = EmuEditPipeline.from_pretrained(editor_folder("toy"), dtype=torch.bfloat16)
    assert pipe.sampler().dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("offload", [offload_sequentially, offload_groups])
@pytest.mark.parametrize("kind", ["toy", "sd15", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layers_may_be_offloaded(
    offload: Callable[..., None], kind: str, dtype: torch.dtype, editor_folder: EditorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    call: dict[str, Any] = {"prompt": "make it red", "image": pixels()[0], "output_type": "pt", **FAST}
    in_memory = EmuEditPipeline.from_pretrained(editor_folder(kind), dtype=dtype)
    offloaded = EmuEditPipeline.from_pretrained(editor_folder(kind), dtype=dtype)
    offload(offloaded, monkeypatch)
    assert offloaded.vae.dtype == (dtype if kind == "toy" else torch.float32), "converted before its weights are copied"
    want, *got = (pipe(**call, generator=seeded(1)[0]).images for pipe in (in_memory, offloaded, offloaded))
    for image in got:
        torch.testing.assert_close(image, want)


def test_a_pipeline_has_the_components_of_diffusers(pipe: EmuEditPipeline) -> None:
    same = EmuEditPipeline(**pipe.components, **pipe.parameters)
    assert same.components == pipe.components
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "task_embedding"} <= set(pipe.components)
