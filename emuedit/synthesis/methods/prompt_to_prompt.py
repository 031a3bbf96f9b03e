"""Prompt-to-Prompt (Hertz et al., arXiv 2208.01626): a caption's edit painted beside it under its attention maps.

For any U-Net of diffusers with plain attention and any prediction type. Cross-attention maps are edited, so they are made in
full here, R heads x N x L numbers a layer, in the steps that edit or read them; self-attention maps are only taken over, and
taking the source's queries and keys does that without making them. InstructPix2Pix's data recipe (arXiv 2211.09800) is the
special case of `instruct_pix2pix`.

Shapes: G sources, K edits, R = G + K rows of a batch, N tokens of a layer, L tokens of a caption, S steps, C latent channels,
h and w the size of the latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emuedit.core import attention_mixing, token_alignment
from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.synthesis.methods import ddim_inversion
from emuedit.synthesis.methods.attention_maps import Maps, watched

EVERYWHERE = 1 << 30
"""As `Edit.self_tokens`: layers of any size."""


@dataclass(frozen=True)
class Blend:
    """LocalBlend: where the changed words of neither caption look, the source's latents stay."""

    n_tokens: int  # layers of so many tokens are read: the authors' 16 x 16 of latents of 64 x 64
    threshold: float  # of a map divided by its largest value; the authors' 0.3
    start: float  # part of the steps before which nothing is blended; the authors' 0.2


@dataclass(frozen=True)
class Edit:
    """One edit of a source. Fractions are of the S steps, from the first."""

    source: int
    caption: str
    cross_fraction: float  # cross-attention maps from the source, word by word; the authors' 0.8
    self_fraction: float  # self-attention maps from the source; the authors' 0.4
    self_tokens: int  # only in layers of at most so many tokens; the authors' 16^2 of latents of 64 x 64
    guidance: float
    null_too: bool = False  # self-attention also in the half without text, which the authors leave alone
    weights: Mapping[str, float] = field(default_factory=dict)  # word of the caption -> factor of its maps, in the first part
    blend: Blend | None = None


def instruct_pix2pix(source: int, caption: str, self_fraction: float, guidance: float) -> Edit:
    """InstructPix2Pix's variant: self-attention of the source in all layers and both halves, cross-attention free."""
    return Edit(source, caption, 0.0, self_fraction, EVERYWHERE, guidance, null_too=True)


@dataclass(frozen=True)
class Words:
    """A caption as a tokenizer sees it."""

    words: tuple[str, ...]
    pieces: tuple[tuple[int, ...], ...]  # token ids of every word

    @staticmethod
    def of(tokenizer: Any, caption: str) -> Words:
        """Split at spaces. Raises ValueError for a tokenizer that joins words, and for a caption that it would cut."""
        words = tuple(caption.split())
        pieces = tuple(tuple(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words)
        whole, flat = list(tokenizer(caption)["input_ids"]), [one for piece in pieces for one in piece]
        if whole[1:-1] != flat or len(whole) > tokenizer.model_max_length:
            room = tokenizer.model_max_length
            raise ValueError(
                f"want a caption of at most {room} tokens, one word after the other between a start and an end token, got "
                f"{len(whole)} for {caption!r}; shorten it, or use a CLIP tokenizer"
            )
        return Words(words, pieces)

    @property
    def tokens(self) -> list[int | str]:
        """All token ids, with marks for start and end."""
        return ["start", *(one for piece in self.pieces for one in piece), "end"]

    @property
    def lengths(self) -> list[int]:
        """Tokens of every word."""
        return [len(piece) for piece in self.pieces]

    def at(self, places: Sequence[int], length: int) -> Tensor:
        """1 at the tokens of the words at these places, float [L]."""
        spans, found = token_alignment.spans(self.lengths), torch.zeros(length)
        for place in places:
            found[list(spans[place])] = 1
        return found


def mapping(source: Words, target: Words, length: int) -> token_alignment.Mapping:
    """`replace` for captions of equally many words, else `refine`, as people choose by hand."""
    if len(source.words) == len(target.words):
        return token_alignment.replace(source.lengths, target.lengths, length)
    return token_alignment.refine(source.tokens, target.tokens, length)


@dataclass(frozen=True)
class PromptToPrompt:
    """A base_model that paints sources and edits together. `dtype` other than float32 runs the U-Net under autocast."""

    base_model: TextToImageModel
    steps: int
    dtype: torch.dtype = torch.float32

    def generate(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        guidance: Sequence[float],
        edits: Sequence[Edit],
        path: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sources and their edits from the same noise, in one batch: latents float32 [G, C, h, w] and [K, C, h, w].

        With a `path` float32 [S + 1, G, C, h, w] of real pictures (`ddim_inversion.path`) the sources walk it with DDIM, whatever
        the guidance, and their edits start from its noise.
        """
        if not len(captions) == len(seeds) == len(guidance) or not captions:
            raise ValueError(f"want a seed and a guidance a caption, got {len(captions)}, {len(seeds)} and {len(guidance)}")
        of = [*range(len(captions)), *(one.source for one in edits)]
        scheduler = self._scheduler(len(captions), path)
        generators = [torch.Generator().manual_seed(seeds[g]) for g in of]  # the same chance for a source and its edits
        extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        z_t = self.base_model.noise(generators) * scheduler.init_noise_sigma if path is None else path[0, of]  # [R, C, h, w]
        strength = torch.tensor([*guidance, *(one.guidance for one in edits)], device=z_t.device).view(-1, 1, 1, 1)
        guided = bool((strength != 1).any())
        text = self.base_model.encode_text([*captions, *(one.caption for one in edits)])
        both = TextCondition.cat(self.base_model.null_text(len(of)), text) if guided else text
        with watched(self.base_model.unet) as maps, torch.no_grad():
            plan = _Plan(self, captions, edits, text.hidden.shape[1], maps)
            for i, t in enumerate(scheduler.timesteps):
                plan.before(i, len(of), guided)
                scaled = scheduler.scale_model_input(z_t, t)
                with torch.autocast(z_t.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    eps = self.base_model.predict(torch.cat([scaled, scaled]) if guided else scaled, t, both)
                if guided:
                    e_null, e_text = eps.chunk(2)
                    eps = e_null + strength * (e_text - e_null)
                z_t = scheduler.step(eps, t, z_t, **extra, return_dict=False)[0]
                if path is not None:
                    z_t = torch.cat([path[i + 1], z_t[len(captions) :]])
                z_t = plan.after(i, z_t)
        return z_t[: len(captions)], z_t[len(captions) :]

    def _scheduler(self, n_sources: int, path: Tensor | None) -> Any:
        """A fresh one, ready to step: the base_model's own, or the one that the path was made with."""
        if path is None:
            scheduler = type(self.base_model.scheduler).from_config(self.base_model.scheduler.config)
            scheduler.set_timesteps(self.steps, device=self.base_model.device)
            return scheduler
        if path.shape[:2] != (self.steps + 1, n_sources):
            want = (self.steps + 1, n_sources)
            raise ValueError(f"want a path of {want} latents, steps and sources, got {tuple(path.shape[:2])}; invert anew")
        return ddim_inversion.ddim(self.base_model, self.steps)


class _Plan:
    """Fractions as steps, captions as mappings, and what the layers are told before and asked after each step."""

    def __init__(self, how: PromptToPrompt, captions: Sequence[str], edits: Sequence[Edit], length: int, maps: Maps) -> None:
        wild = [f for one in edits for f in (one.cross_fraction, one.self_fraction) if not 0 <= f <= 1]
        if wild:
            raise ValueError(f"fractions of the steps must lie in [0, 1], got {wild}")
        if idle := [dict(one.weights) for one in edits if one.weights and not one.cross_fraction]:
            raise ValueError(f"want a cross_fraction above 0 for edits that reweight words, got 0 with {idle}")
        self.edits, self.steps, self.maps, self.n_sources = edits, how.steps, maps, len(captions)
        self.source = torch.tensor([one.source for one in edits], dtype=torch.int64)
        tokenizer = how.base_model.tokenizer
        needed = [bool(one.cross_fraction or one.weights or one.blend) for one in edits]
        said = {text: Words.of(tokenizer, text) for one, yes in zip(edits, needed, strict=True) if yes
                for text in (captions[one.source], one.caption)}  # fmt: skip
        self.A, self.own, self.weight = torch.zeros(len(edits), length, length), *torch.ones(2, len(edits), length)
        self.looked_for = torch.zeros(2, len(edits), length)  # changed words of the source's caption and of the edit's
        for k, one in enumerate(edits):
            if not needed[k]:
                continue
            a, b = said[captions[one.source]], said[one.caption]
            found = mapping(a, b, length)
            self.A[k], self.own[k] = found.A, found.own
            for word, factor in one.weights.items():
                places = [n for n, other in enumerate(b.words) if other.strip(",.;:!?") == word]
                if not places:
                    raise ValueError(f"want words of {one.caption!r} to reweight, got {word!r}")
                self.weight[k] = torch.where(b.at(places, length) > 0, factor, self.weight[k])
            before, after = token_alignment.changed(a.words, b.words)
            self.looked_for[0, k], self.looked_for[1, k] = a.at(before, length), b.at(after, length)

    def before(self, i: int, n_rows: int, guided: bool) -> None:
        """Tell the layers what to do in step i."""
        cross = [i < round(one.cross_fraction * self.steps) for one in self.edits]
        own = [one.self_tokens if i < round(one.self_fraction * self.steps) else 0 for one in self.edits]
        null = [limit if one.null_too else 0 for limit, one in zip(own, self.edits, strict=True)]
        rows = torch.arange(self.n_sources, n_rows)
        limits = torch.zeros(2, n_rows, dtype=torch.int64)
        limits[0, rows], limits[1, rows] = torch.tensor(null, dtype=torch.int64), torch.tensor(own, dtype=torch.int64)
        at = torch.arange(n_rows)
        at[rows] = self.source
        shift = n_rows if guided else 0
        self.maps.source_row = torch.cat([at, at + shift]) if guided else at
        self.maps.self_tokens = limits.flatten() if guided else limits[1]
        active = torch.tensor(cross, dtype=torch.bool)
        self.maps.edited, self.maps.its_source = shift + rows[active], shift + self.source[active]
        self.maps.A, self.maps.own, self.maps.weight = self.A[active], self.own[active], self.weight[active]
        self.maps.first_text_row = shift
        self.maps.read = frozenset(one.blend.n_tokens for one in self.edits if one.blend)

    def after(self, i: int, z_t: Tensor) -> Tensor:
        """LocalBlend: M z + (1 - M) z_source, M where the mean map of the changed words of either caption is large."""
        for k, one in enumerate(self.edits):
            if one.blend is None or i < int(one.blend.start * self.steps):
                continue
            seen = self.maps.seen(one.blend.n_tokens)  # [R, N, L], summed over the steps so far
            row = self.n_sources + k
            M = torch.zeros(1, 1, *z_t.shape[-2:], dtype=torch.bool)
            for which, words in ((one.source, self.looked_for[0, k]), (row, self.looked_for[1, k])):
                if words.any():
                    M |= blended(seen[which] @ words.to(seen), (z_t.shape[-2], z_t.shape[-1]), one.blend.threshold).cpu()
            z_t = z_t.clone()
            z_t[row] = torch.where(M[0].to(z_t.device), z_t[row], z_t[one.source])
        return z_t


def blended(P: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Where a map [N] is large: 3 x 3 max-pool, made as large as the latents, over its maximum; bool [1, 1, h, w]."""
    M = P.reshape(1, 1, *attention_mixing.grid(len(P), *size)).float()
    M = F.interpolate(F.max_pool2d(M, 3, stride=1, padding=1), size)
    return M / M.amax() > threshold
