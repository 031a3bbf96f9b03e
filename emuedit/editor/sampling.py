"""The one way an editor edits: evaluation, command line, registry and service all call `Editor.edit`.

Shapes: B samples, H and W pixels, C latent channels, h and w latent sizes, D_v width of a task embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from emuedit.core import diffusion, guidance
from emuedit.editor import checkpoint, task_embedding, task_pack
from emuedit.editor.checkpoint import FrozenParts
from emuedit.editor.unet import EditorUNet
from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextCondition


class Editor:
    """An editor that is ready to work. `weights`: fingerprint of the network, which task packs are made for."""

    def __init__(self, net: EditorUNet, frame: FrozenParts, weights: str, dtype: torch.dtype = torch.float32) -> None:
        self.net, self.frame, self.weights, self.dtype = net, frame, weights, dtype
        levels = len(frame.unet.config.block_out_channels) - 1
        self.grid = frame.factor * 2**levels  # px: the VAE halves a picture, and so does the U-Net

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks it knows: the rows of its table, then those that `add_task` brought."""
        return self.net.table.names

    @property
    def inverted(self) -> tuple[str, ...]:
        """Those of them that came by inversion."""
        return self.tasks[len(task_embedding.TRAINED) :]

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self.frame.device

    def autocast(self) -> torch.autocast:
        """Half-precision sums where the editor was loaded in bfloat16, nothing otherwise."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def edit(
        self,
        images: Tensor,
        instructions: Sequence[str],
        tasks: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        s_I: float,
        s_T: float,
        hold: float = 1.0,
        phi: float = 0.0,
        progress: bool = False,
    ) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of any size -> edited ones, float32 of the same size.

        A sample depends on its own picture, instruction, task and seed alone. s_I and s_T guide by picture and instruction
        (Emu Edit: 1.5 and 5.0); at 1 they cost nothing, other values cost up to three evaluations a step, in one forward.
        hold in [0, 1] keeps the picture where the editor itself sees nothing to change, see `core.guidance.held`.
        phi in [0, 1] pulls guidance back to the spread of the conditioned prediction. Raises UnknownTaskError for an unknown
        task, ValueError for pictures out of range and for lists of unequal length.
        """
        n = len(image_tensors.check(images))
        if not n or not n == len(instructions) == len(tasks) == len(seeds):
            raise ValueError(
                f"want one instruction, task and seed for each picture, got {n} pictures, {len(instructions)} instructions, "
                f"{len(tasks)} tasks, {len(seeds)} seeds"
            )
        v = self.net.table.rows(tasks)  # [B, D_v]
        height, width = images.shape[-2:]
        right, below = -width % self.grid, -height % self.grid
        whole = F.pad(images.float(), (0, right, 0, below), mode="replicate").to(self.device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with torch.inference_mode(), self.autocast():
            c_I = self.frame.encode(whole)  # [B, C, h, w]
            z = self._denoise(c_I, self.frame.encode_text(instructions), v, generators, steps, s_I, s_T, hold, phi, progress)
            edited = self.frame.decode(z)
        return edited[:, :, :height, :width].cpu().clone()

    def _denoise(
        self,
        c_I: Tensor,
        c_T: TextCondition,
        v: Tensor,
        generators: list[torch.Generator],
        steps: int,
        s_I: float,
        s_T: float,
        hold: float,
        phi: float,
        progress: bool,
    ) -> Tensor:
        """From noise to latents [B, C, h, w] under picture, instruction and task."""
        scheduler = type(self.frame.scheduler).from_config(self.frame.scheduler.config)  # a fresh one: some keep a history
        scheduler.set_timesteps(steps, device=self.device)
        extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        source, kind = c_I, scheduler.config.prediction_type
        n, size = len(c_I), (c_I.shape[-2] * self.frame.factor, c_I.shape[-1] * self.frame.factor)
        terms = 1 if s_I == s_T == 1 else 2 if s_I == 1 else 3  # full; image, full; null, image, full
        if terms > 1:
            null = self.frame.null_text(n)
            c_T = TextCondition.cat(*[null] * (terms - 1), c_T)
            c_I = torch.cat([torch.zeros_like(c_I)] * (terms - 2) + [c_I] * 2)
        v = v.repeat(terms, 1)
        z_t = self.frame.noise(generators, size) * scheduler.init_noise_sigma
        for t in tqdm(scheduler.timesteps, desc="edit", disable=not progress):
            scaled = scheduler.scale_model_input(z_t, t)
            e, change = self.net(scaled.repeat(terms, 1, 1, 1), t, c_I, c_T, v)
            if terms > 1:
                *rest, e_image, e_full = e.chunk(terms)
                e_null = rest[0] if rest else e_image  # its weight is then zero
                e = guidance.two_conditions(e_null, e_image, e_full, s_I, s_T)
                e = guidance.rescaled(e, e_full, phi) if phi else e
            if hold:
                alpha_bar = scheduler.alphas_cumprod[t.round().long().cpu()].to(scaled)
                e_source = diffusion.implied(source, scaled, alpha_bar, kind)
                e = guidance.held(e, e_source, change[-n:].sigmoid(), hold)
            z_t = scheduler.step(e, t, z_t, **extra, return_dict=False)[0]
        return z_t

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the whole editor, added tasks included, as a pipeline folder that `load` reads."""
        self.weights = checkpoint.save(self.net, self.frame.pipeline, Path(folder), dtype)

    def add_task(self, name: str, v: Tensor) -> None:
        """Teach it a task that inversion learned: its embedding v [D_v] becomes one more row."""
        self.net.table.add(name, v)

    def add_pack(self, file: str | Path) -> task_pack.Pack:
        """The same from a task pack. Raises PackError for a file that is none and for a pack made for another editor."""
        found = task_pack.load(file)
        task_pack.check(found, self.weights)
        self.add_task(found.name, found.v)
        return found


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32, revision: str | None = None) -> Editor:
    """An editor from a folder or a hub id. bfloat16: float32 weights under autocast. FileNotFoundError for a base_model."""
    net, frame, weights = checkpoint.load(name_or_path, device, dtype, revision)
    return Editor(net, frame, weights, dtype)
