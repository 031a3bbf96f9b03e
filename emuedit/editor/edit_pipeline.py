"""An editor as a diffusers pipeline: `EmuEditPipeline.from_pretrained(folder)(image=..., prompt=..., task=...)`.

Shapes: B images, H and W pixels, C latent channels, h and w latent sizes, n = B num_images_per_prompt results.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils.torch_utils import is_compiled_module
from huggingface_hub import snapshot_download
from torch import Tensor

import emuedit.editor.task_embedding  # noqa: F401  diffusers loads parts only of classes whose module was imported
from emuedit.editor import model_card
from emuedit.editor.pipeline_images import OUTPUT_TYPES, EditPipelineOutput, convert_output, measure_changes, read_images
from emuedit.editor.settings import EditSettings
from emuedit.editor.unet import EditorUNet, fingerprint
from emuedit.models import model_sources, text_to_image
from emuedit.models.denoising import Denoiser

if TYPE_CHECKING:
    from emuedit.editor.sampling import EditSampler

AfterStep = Callable[[Any, int, Tensor, dict[str, Tensor]], Mapping[str, Tensor]]
"""`callback_on_step_end(pipeline, step, timestep, {"latents": z_t})` of diffusers; returns the latents for the next step."""
FOLDER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", model_card.CARD_FILE)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
DEFAULTS = EditSettings()


class EmuEditPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is Any
    """Edits images by instruction, with the argument names of diffusers.

        pipe = EmuEditPipeline.from_pretrained("models/editor").to("cuda")
        edited = pipe(prompt="make the circle red", image=Image.open("in.png"), task="local").images[0]

    It has the parts of its base model (Stable Diffusion 1.x, 2.x or XL), with the U-Net of an `EditorUNet` and a
    `TaskEmbedding`. It samples with `EditSampler.sample`, as `emuedit.Editor` does.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _exclude_from_cpu_offload: ClassVar = ["task_embedding"]  # a few rows, looked up without a forward call
    _optional_components: ClassVar = ["text_encoder_2", "tokenizer_2"]
    _callback_tensor_inputs: ClassVar = ["latents"]
    _interrupt = False
    _num_timesteps = 0

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        task_embedding: Any,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        force_zeros_for_empty_prompt: bool = False,
        training: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            task_embedding=task_embedding, text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2,
        )  # fmt: skip
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt, training=training)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Valid values of `task`: the trained tasks and the tasks added by inversion."""
        names: tuple[str, ...] = self.task_embedding.names
        return names

    @property
    def num_timesteps(self) -> int:
        """Number of denoising steps of the last call; a scheduler of second order has more than `num_inference_steps`."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call ends after its present step: as in diffusers, a callback sets `_interrupt`."""
        return self._interrupt

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the U-Net; the task embedding, and possibly the VAE, are float32."""
        dtype: torch.dtype = self.unet.dtype
        return dtype

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> EmuEditPipeline:
        """Open an editor from a folder or a hub id; arguments as for any diffusers pipeline, such as `dtype`.

        Raises FileNotFoundError or ValueError for a folder that is not an editor; the message says what was found.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = Path(cls.download(str(pretrained_model_name_or_path), **kwargs))
        model_sources.read_manifest(str(folder), model_sources.EDITOR)
        pipeline: EmuEditPipeline = super().from_pretrained(str(folder), **{"use_safetensors": True} | kwargs)
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Download an editor from the hub unless it is cached; returns its folder.

        Only safetensors and text files are downloaded. DiffusionPipeline.download rejects parts whose class is not from diffusers
        or transformers, such as the task embedding.
        """
        options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        return snapshot_download(pretrained_model_name, allow_patterns=list(FOLDER_FILES), **options)

    def save_pretrained(self, save_directory: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the pipeline and its model card. Changed weights get another fingerprint, here and in the folder.

        Raises ValueError for formats other than safetensors, and for tasks that have an adapter or a learned change threshold.
        """
        if not safe_serialization:
            raise ValueError("want safe_serialization=True, got False: pickled weights can run code; omit the argument")
        self.task_embedding.check_storable()
        self._update_fingerprint()
        super().save_pretrained(save_directory, **kwargs)
        model_card.write(self, save_directory)

    def _update_fingerprint(self) -> None:
        """Register the weights' fingerprint unless the recorded one is theirs in one of the number formats of stored editors."""
        unet = self.unet._orig_mod if is_compiled_module(self.unet) else self.unet
        net = EditorUNet(unet, self.task_embedding, self.vae_scale_factor)
        present, recorded = fingerprint(net, unet.dtype), self.task_embedding.fingerprint
        others = {torch.float16, torch.bfloat16, torch.float32} - {unet.dtype}
        if present != recorded and not any(fingerprint(net, dtype) == recorded for dtype in others):
            self.task_embedding.register_to_config(weights=present)

    def _upload_folder(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """Upload a saved pipeline with our model card; `push_to_hub` writes the repository's card, or an empty one, over it.

        A card of the repository is kept if someone wrote it, or removed the marker of ours.
        """
        card = Path(working_dir, model_card.CARD_FILE)
        text = card.read_text(encoding="utf-8") if card.is_file() else model_card.MARKER
        if model_card.MARKER in text or "[More Information Needed]" in text:
            model_card.write(self, working_dir)
        return super()._upload_folder(working_dir, *args, **kwargs)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """Encode a prompt like the base model's pipeline: see StableDiffusionPipeline or StableDiffusionXLPipeline."""
        family = StableDiffusionPipeline if self.text_encoder_2 is None else StableDiffusionXLPipeline
        return family.encode_prompt(self, *args, **kwargs)

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers. A VAE that overflows in float16 is converted first, see `avoid_vae_overflow`."""
        text_to_image.avoid_vae_overflow(self.vae)
        super().enable_sequential_cpu_offload(*args, **kwargs)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, but the small task embedding stays on the device: groups are loaded when a part's forward is called,
        which it has not. A VAE that overflows in float16 is converted first, since streams copy its weights."""
        text_to_image.avoid_vae_overflow(self.vae)
        options = inspect.signature(super().enable_group_offload).bind(*args, **kwargs).arguments
        excluded = options.pop("exclude_modules", None) or []
        excluded = [excluded] if isinstance(excluded, str) else excluded
        super().enable_group_offload(**options, exclude_modules=[*excluded, "task_embedding"])

    def sampler(self) -> EditSampler:
        """A sampler with these parts, which edits tensors. Tasks that one sampler adds are those of the pipeline, too."""
        from emuedit.editor.checkpoint import FrozenParts  # avoids a circular import
        from emuedit.editor.sampling import EditSampler

        parts = FrozenParts(self)
        net = EditorUNet(self.unet, self.task_embedding, parts.factor)
        return EditSampler(net, parts, self.task_embedding.fingerprint, self.unet.dtype)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Any,
        task: str | Sequence[str] | None = None,
        num_inference_steps: int = DEFAULTS.steps,
        guidance_scale: float = DEFAULTS.guidance_scale,
        image_guidance_scale: float = DEFAULTS.image_guidance_scale,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: AfterStep | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        guidance_rescale: float = DEFAULTS.guidance_rescale,
        preserve: float = DEFAULTS.preserve,
        change_threshold: float = DEFAULTS.change_threshold,
        background_threshold: float = DEFAULTS.background_threshold,
        composite: int = DEFAULTS.composite,
        border_px: int = DEFAULTS.border_px,
        against_reconstruction: int = DEFAULTS.against_reconstruction,
    ) -> Any:
        """Edit images by instruction. Returns `EditPipelineOutput`, or (images,) with return_dict=False.

        prompt: an instruction, such as "make the circle red", or one per image.
        image: a PIL image, an array [H, W, 3] (uint8, or float in [0, 1]), a tensor [3, H, W] in [0, 1], a batch or a list of
          them; any size, but all of one size, which is also the result's. A single image is used for all prompts.
        task: a name from `tasks`, or one per image. Required.
        num_inference_steps, guidance_scale (by the instruction), image_guidance_scale (by the image), guidance_rescale,
          preserve, composite, border_px, change_threshold, background_threshold, against_reconstruction: see `EditSettings`,
          where the first is called `steps`.
        negative_prompt: replaces the null text of guidance; one, or one per image.
        num_images_per_prompt: results per prompt, each with different noise; the results of a prompt are adjacent.
        generator: one for all n results, or one per result; None: torch's global generator. A generator with seed s gives the
          image that `emuedit.Editor` gives with seed s.
        latents: standard normal noise [n, C, h, w] in place of drawn noise.
        output_type: "pil": images; "np": float32 [n, H, W, 3] in [0, 1]; "pt": float32 [n, 3, H, W] in [0, 1], on the CPU.
        callback_on_step_end: called as callback(pipeline, step, timestep, {"latents": z_t}) after each step; sampling continues
          with the "latents" that it returns. It may end the call by `pipeline._interrupt = True`. Images of tasks with an
          adapter are denoised apart from the others, so z_t has a part of the n rows then; those not begun when the call is ended
          are returned unedited.
        Raises UnknownTaskError, SettingsError for a setting out of bounds, and ValueError for other invalid arguments.
        """
        from emuedit.editor.sampling_options import SamplingOptions

        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"want one of the output types {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"want callback tensors from {self._callback_tensor_inputs}, got {sorted(unknown)}")
        if task is None:
            raise ValueError(
                f"want one of the tasks {', '.join(self.tasks)}; got none; name it, or use emuedit.Editor, which predicts it"
            )
        pictures = read_images(image)  # [B, 3, H, W]
        n_prompts = max(len(pictures), 1 if isinstance(prompt, str) else len(prompt))
        if len(pictures) not in (1, n_prompts):
            raise ValueError(f"want one image, or one for each of the {n_prompts} prompts; got {len(pictures)} images")
        settings = DEFAULTS.with_changes({
            "steps": num_inference_steps, "guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale,
            "guidance_rescale": guidance_rescale, "preserve": preserve, "change_threshold": change_threshold,
            "background_threshold": background_threshold, "composite": composite, "border_px": border_px,
            "against_reconstruction": against_reconstruction,
        })  # fmt: skip

        def repeat(name: str, texts: str | Sequence[str]) -> list[str]:
            per_prompt = [texts] * n_prompts if isinstance(texts, str) else list(texts)
            if len(per_prompt) == 1:
                per_prompt *= n_prompts
            if len(per_prompt) != n_prompts:
                raise ValueError(f"want one {name}, or one for each of the {n_prompts} images; got {len(per_prompt)}")
            return [text for text in per_prompt for _ in range(num_images_per_prompt)]

        images = pictures.expand(n_prompts, -1, -1, -1).repeat_interleave(num_images_per_prompt, 0)  # [n, 3, H, W]
        generators = _one_per_result(generator, len(images))
        text_to_image.avoid_vae_overflow(self.vae)
        prompts, tasks = repeat("prompt", prompt), repeat("task", task)
        self._interrupt = False
        self._num_timesteps = len(Denoiser(self.scheduler, settings.steps, torch.device("cpu")).timesteps)
        n_batches = len({name if name in self.task_embedding.adapters else None for name in tasks})
        with self.progress_bar(total=self._num_timesteps * n_batches) as progress_bar:

            def after_step(step: int, t: Tensor, z_t: Tensor) -> Tensor:
                progress_bar.update()
                if callback_on_step_end is None:
                    return z_t
                return callback_on_step_end(self, step, t, {"latents": z_t}).get("latents", z_t)

            negative_prompts = repeat("negative_prompt", negative_prompt) if negative_prompt else []
            options = SamplingOptions(negative_prompts, latents, after_step, lambda: self._interrupt)
            edited = self.sampler().sample(images, prompts, tasks, settings, generators, options=options).images
        self.maybe_free_model_hooks()
        results = convert_output(edited, output_type)
        return EditPipelineOutput(images=results, changed=measure_changes(images, edited)) if return_dict else (results,)


def _one_per_result(generator: torch.Generator | Sequence[torch.Generator] | None, n: int) -> list[torch.Generator]:
    """n generators; a single one is repeated n times."""
    if generator is None or isinstance(generator, torch.Generator):
        return [torch.default_generator if generator is None else generator] * n
    if len(generator) != n:
        raise ValueError(f"want one generator, or one for each of the {n} results; got {len(generator)}")
    return list(generator)
