"""Sampling of edits. `Editor`, `EmuEditPipeline`, evaluation, previews and inversion all call `EditSampler.sample`.

Shapes: B samples, H and W pixels, C latent channels, h and w latent sizes, D_v the width of a task embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from emuedit.core import compositing, diffusion, guidance
from emuedit.core.padding import padded_px
from emuedit.editor import checkpoint, preservation, task_pack
from emuedit.editor.checkpoint import FrozenParts
from emuedit.editor.sampling_options import NO_OPTIONS, Edited, NonFiniteEditError, RawEdit, SamplingOptions
from emuedit.editor.settings import EditSettings
from emuedit.editor.task_adapter import TaskAdapter
from emuedit.editor.unet import EditConditions, EditorUNet
from emuedit.models import image_tensors
from emuedit.models.denoising import Denoiser
from emuedit.models.text_to_image import TextCondition, grid_of
from emuedit.runtime import Runtime

if TYPE_CHECKING:
    from emuedit.editor.task_embedding import TaskEmbedding

MAX_PIXELS_PER_BATCH = 8 * 512**2
"""Eight images of 512 px, which are 24 rows of the U-Net with guidance. Longer lists are split to fit a GPU."""
_locks: WeakKeyDictionary[TaskEmbedding, threading.RLock] = WeakKeyDictionary()
"""Task embedding -> the lock of all its samplers. It is no attribute there: a lock can be neither copied nor pickled."""


class EditSampler:
    """A trained editor on tensors. `fingerprint`: of the network (16 hex digits), to which task packs are bound.

    `dtype`: number format of the computations. float32 weights run under autocast: in training, and on a CPU with bfloat16.
    Thread-safe: edits of several threads, and task inversion, run one at a time (`lock`), also those of samplers
    that share the network.
    """

    def __init__(self, net: EditorUNet, parts: FrozenParts, fingerprint: str, dtype: torch.dtype = torch.float32) -> None:
        self.net, self.parts, self.fingerprint, self.dtype = net, parts, fingerprint, dtype
        self._uses_autocast = dtype != torch.float32 and next(net.unet.parameters()).dtype == torch.float32
        self.lock = _locks.setdefault(net.table, threading.RLock())  # an active adapter affects all users of the network
        self.adapters, self.change_thresholds = net.table.adapters, net.table.change_thresholds  # of all samplers of the network
        self.grid_px = grid_of(parts)
        self.resolution_px = checkpoint.training_resolution(parts)
        """Side in px of a square with the area of the editor's training images."""
        self.max_pixels_per_batch = MAX_PIXELS_PER_BATCH
        """Maximum number of pixels per batch (at least one image), with the padding to `grid_px`. Lower it to save memory."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its tasks: the rows of its task embedding, including those added by `add_task`."""
        return self.net.table.names

    @property
    def inverted_tasks(self) -> tuple[str, ...]:
        """Its tasks that were learned by task inversion."""
        return self.tasks[self.net.table.n_trained :]

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.parts.device

    @property
    def max_tokens(self) -> int:
        """Token limit of an instruction."""
        return int(self.parts.tokenizer.model_max_length)

    def is_truncated(self, instruction: str) -> bool:
        """Whether an instruction exceeds the text encoder's token limit."""
        return self.parts.is_truncated(instruction)

    def autocast(self) -> torch.autocast:
        """Autocast to `dtype` if the weights are float32; else does nothing."""
        return torch.autocast(self.device.type, self.dtype, enabled=self._uses_autocast)

    def sample(
        self,
        images: Tensor,
        instructions: Sequence[str],
        tasks: Sequence[str],
        settings: EditSettings,
        seeds: Sequence[int | torch.Generator] | None = None,
        options: SamplingOptions = NO_OPTIONS,
    ) -> Edited:
        """Edit images [B, 3, H, W] in [-1, 1] of any size.

        A sample depends only on its image, instruction, task and seed; `max_pixels_per_batch` bounds the memory. Default `seeds`:
        settings.seed + 0, 1, ...; a generator is accepted in place of a seed.
        Guidance costs up to three evaluations per step, in one forward: see `guidance.terms_of`.
        Raises UnknownTaskError for an unknown task, ValueError for images out of range and for lists of unequal length, and
        NonFiniteEditError if the network returns NaN or infinity.
        """
        n = len(image_tensors.check_images(images))
        seeds = range(settings.seed, settings.seed + n) if seeds is None else seeds
        if not n or not n == len(instructions) == len(tasks) == len(seeds):
            raise ValueError(
                f"want one instruction, task and seed for each image, got {n} images, {len(instructions)} instructions, "
                f"{len(tasks)} tasks, {len(seeds)} seeds"
            )
        after, shift_of = torch.empty(images.shape).copy_(images.detach()), dict[int, float | None]()
        reconstructions = after.clone() if options.keep_reconstructions else None
        for rows, edit in self.raw_edits(images, instructions, tasks, settings, seeds, options):
            before, names = images[rows].float().cpu(), [tasks[row] for row in rows]
            weight = preservation.edit_weight(before, edit, names, settings, self.parts.factor, edit.learned_thresholds)
            after[rows] = compositing.blend(before, edit.image, weight)
            if reconstructions is not None and edit.reconstruction is not None:
                reconstructions[rows] = edit.reconstruction
            if options.measure_shifts:
                has_head = bool(settings.composite) and edit.change_probability is not None
                shifts = preservation.measure_shifts(before, edit.image, weight, names, has_head)
                shift_of |= dict(zip(rows, shifts, strict=True))
        return Edited(after, tuple(shift_of.get(row) for row in range(n)), reconstructions)

    def raw_edits(
        self,
        images: Tensor,
        instructions: Sequence[str],
        tasks: Sequence[str],
        settings: EditSettings,
        seeds: Sequence[int | torch.Generator],
        options: SamplingOptions = NO_OPTIONS,
    ) -> Iterator[tuple[list[int], RawEdit]]:
        """Edits before pixels are preserved, in batches: (row indices, edits of these rows). Arguments: see `sample`.

        All batches have the tasks, with their adapters and thresholds, of the time when the first one begins.
        None begins after an interruption (`options.is_interrupted`).
        """
        with self.lock:  # another thread may replace a task
            v, adapters, thresholds = self.net.table.rows(tasks), dict(self.adapters), dict(self.change_thresholds)
        generators = [seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed) for seed in seeds]
        height, width = images.shape[-2:]
        n_padded = padded_px(height, width, self.grid_px)
        at_once = len(images) if options.after_step else max(1, self.max_pixels_per_batch // n_padded)
        for adapter, rows in _groups(tasks, adapters, at_once):
            if options.is_interrupted():
                return
            texts, randoms = [instructions[row] for row in rows], [generators[row] for row in rows]
            chosen = options if len(rows) == len(images) else options.rows(rows)
            with self.lock, nullcontext() if adapter is None else adapter.applied(self.net.unet):
                edit = self._sample_rows(images[rows], texts, v[rows], settings, randoms, chosen)
            yield rows, replace(edit, learned_thresholds=thresholds)

    def _sample_rows(
        self,
        images: Tensor,
        instructions: Sequence[str],
        v: Tensor,
        settings: EditSettings,
        generators: list[torch.Generator],
        options: SamplingOptions,
    ) -> RawEdit:
        """Edit rows with one adapter or none, without `composite` and thresholding."""
        height, width = images.shape[-2:]
        padding = (0, -width % self.grid_px, 0, -height % self.grid_px)
        padded = F.pad(images.float(), padding, mode="replicate").to(self.device)
        with torch.inference_mode(), self.autocast():
            conditions = EditConditions(self.parts.encode(padded), self.parts.encode_text(instructions), v.to(self.device))
            z, change_probability = self._denoise(conditions, generators, settings, options)
            edited = self._decode(z, height, width)
            if not edited.isfinite().all():
                raise NonFiniteEditError(self.dtype)
            is_compared = settings.change_threshold > 0 and settings.against_reconstruction
            needs_reconstruction = is_compared or options.keep_reconstructions
            reconstruction = self._decode(conditions.c_I, height, width) if needs_reconstruction else None
        return RawEdit(edited.float(), reconstruction, None if change_probability is None else change_probability.cpu())

    def _decode(self, z: Tensor, height: int, width: int) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, height, width] on the CPU, without the padding."""
        return self.parts.decode(z)[:, :, :height, :width].cpu()

    def _denoise(
        self,
        conditions: EditConditions,
        generators: list[torch.Generator],
        settings: EditSettings,
        options: SamplingOptions,
    ) -> tuple[Tensor, Tensor | None]:
        """Denoise to latents [B, C, h, w] of the edited images.

        Also returns, with a change-mask head, the last step's probability that a cell changes, [B, 1, h, w].
        """
        change_probability = clean = None
        s_I, s_T = settings.image_guidance_scale, settings.guidance_scale
        denoiser = Denoiser(self.parts.scheduler, settings.steps, self.device, generators)
        source, n = conditions.c_I, len(conditions.c_I)
        size_px = (source.shape[-2] * self.parts.factor, source.shape[-1] * self.parts.factor)
        terms = guidance.terms_of(s_I, s_T)
        guided_steps = guidance.guided_steps((settings.guidance_from, settings.guidance_to), len(denoiser.timesteps))
        negative_texts = [self.parts.null_text(1, text) for text in options.negative_prompts]
        null = TextCondition.cat(*negative_texts) if negative_texts else self.parts.null_text(n)
        guided_conditions = conditions.with_guidance_terms(null, terms)
        noise = self.parts.initial_noise(generators, size_px) if options.latents is None else options.latents
        if noise.shape != source.shape:
            raise ValueError(f"want latents {tuple(source.shape)}, the shape of the padded images; got {tuple(noise.shape)}")
        z_t = denoiser.start(noise.to(source))
        for step, t in enumerate(denoiser.timesteps):
            scaled = denoiser.scale(z_t, t)
            is_guided = len(terms) > 1 and step in guided_steps
            inputs = guided_conditions if is_guided else conditions
            z_in = scaled.repeat(len(inputs.v) // n, 1, 1, 1)
            e, change_logits = self.net(z_in, t, inputs.c_I, inputs.c_T, inputs.v)
            if is_guided:
                by_term = dict(zip(terms, e.chunk(len(terms)), strict=True))
                e = guidance.two_conditions(by_term.get("null"), by_term.get("image"), by_term["full"], s_I, s_T)
                if settings.guidance_rescale:
                    e = guidance.rescale(e, by_term["full"], settings.guidance_rescale)
            change_probability = None if change_logits is None else change_logits[-n:].sigmoid()
            if settings.preserve and change_probability is not None:
                levels = denoiser.noise_levels(t, scaled)
                e_source = diffusion.prediction_for_clean(source, scaled, *levels, denoiser.prediction_type)
                e = guidance.blend_with_source(e, e_source, change_probability, settings.preserve)
                if step == len(denoiser.timesteps) - 1:
                    clean = diffusion.clean_from_prediction(scaled, e, *levels, denoiser.prediction_type)
            z_t = denoiser.step(e, t, z_t)
            if clean is not None and change_probability is not None:
                # schedules with a last alpha_bar below 1, such as SD1.5's, leave noise (3 % of a latent) in unchanged regions
                z_t = torch.lerp(z_t, clean.to(z_t), settings.preserve * (1 - change_probability).to(z_t))
            if options.after_step is not None:
                z_t = options.after_step(step, t, z_t)
            if options.report is not None:
                options.report(n)
            if options.is_interrupted():
                break
        return z_t, change_probability

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the editor, including added tasks, as a pipeline folder for `load`.

        Raises ValueError for an editor with adapters or learned change thresholds, which this format cannot store.
        """
        self.fingerprint = checkpoint.save(self.net, self.parts.pipeline, Path(folder), dtype)

    def add_task(self, name: str, v: Tensor, adapter: TaskAdapter | None = None, change_threshold: float | None = None) -> None:
        """Add a task that inversion learned: append its embedding v [D_v].

        Its adapter is active, and its change threshold applies, only for this task.
        """
        with self.lock:
            self.net.table.add(name, v)
            if adapter is not None:
                self.adapters[name] = adapter.to(self.device)
            if change_threshold is not None:
                self.change_thresholds[name] = change_threshold

    def remove_task(self, name: str) -> None:
        """Remove a task that `add_task` added, with its adapter and change threshold."""
        with self.lock:
            self.net.table.remove(name)

    def add_pack(self, file: str | Path, reserved_names: Sequence[str] = ()) -> task_pack.TaskPack:
        """Add the task of a pack.

        reserved_names: names that it cannot have, besides those of `tasks`. Raises TaskPackError for an invalid file, a pack of
        another editor, and a name that exists; nothing is added then.
        """
        pack = task_pack.load(file)
        task_pack.check(pack, self.fingerprint, (*self.tasks, *reserved_names))
        try:
            self.add_task(pack.name, pack.v, pack.adapter, pack.change_threshold)
        except ValueError as error:
            raise task_pack.TaskPackError(f"{file}: {error}") from error
        return pack


def load(folder: str | Path, runtime: Runtime | None = None) -> EditSampler:
    """An editor from its folder, on the device and in the number format of `runtime` (default: float32 on the CPU).

    On a CPU bfloat16 keeps float32 weights and runs under autocast. Raises FileNotFoundError for a base model.
    """
    runtime = runtime or Runtime("cpu", "float32")
    net, parts, fingerprint = checkpoint.load(str(folder), runtime.device, runtime.torch_dtype)
    return EditSampler(net, parts, fingerprint, runtime.torch_dtype)


def _groups(
    tasks: Sequence[str], adapters: Mapping[str, TaskAdapter], at_once: int
) -> Iterator[tuple[TaskAdapter | None, list[int]]]:
    """Batches of at most `at_once` rows: (the adapter of a task, its rows), or (None, rows of tasks without one)."""
    by_adapter: dict[str | None, list[int]] = {}
    for row, name in enumerate(tasks):
        by_adapter.setdefault(name if name in adapters else None, []).append(row)
    for task, rows in by_adapter.items():
        for start in range(0, len(rows), at_once):
            yield None if task is None else adapters[task], rows[start : start + at_once]
