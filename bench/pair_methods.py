"""Ways to paint the same instructions, for `pairs.py`: ours in its kinds, InstructPix2Pix's recipe, Prompt-to-Prompt."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from emuedit.data.records import Instruction
from emuedit.runtime import rng, seed_for
from emuedit.stages.pairs import Params, first_caption
from emuedit.synthesis import batching, masks
from emuedit.synthesis import strategy as bandit
from emuedit.synthesis.methods import prompt_to_prompt
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.recipes import Candidate
from emuedit.synthesis.sampler import Variant
from emuedit.synthesis.strategy import AllCandidates, BanditStrategy, Strategy, TrialCounts

STABLE_DIFFUSION_GUIDANCE = 7.5  # what the rivals' numbers are for; the base_model's own is `guidance` of the section `pairs`
CFG, P = (7.5, 15.0), (0.1, 0.9)  # InstructPix2Pix draws both evenly
CROSS, SELF, GUIDANCE = 0.8, 0.4, 7.5  # Prompt-to-Prompt's usual ones
BLEND = {"threshold": 0.3, "start": 0.2}
MENU_RADIUS_PX, MENU_SELF = (1.0, 3.0, 6.0), (0.0, 0.4)  # what one would try of each task before anything is known
SIZES = (0.04, 0.1)  # bounds between small, middling and large objects


@dataclass(frozen=True)
class Painted:
    """One pair, not judged yet; pictures float32 [3, H, W]."""

    instruction: Instruction
    candidate: int
    source: torch.Tensor
    target: torch.Tensor
    area: float = 0.0  # the object's share of the picture


class Clock:
    """Seconds of processor and wall, by what they were spent on."""

    def __init__(self) -> None:
        self.cpu: defaultdict[tuple[str, int, str], float] = defaultdict(float)
        self.wall: defaultdict[tuple[str, int, str], float] = defaultdict(float)

    @contextmanager
    def on(self, method: str, number: int, part: str) -> Iterator[None]:
        """Count what happens inside to a part (sources, masks, edits, gates) of a method's round."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu[method, number, part] += time.process_time() - cpu
        self.wall[method, number, part] += time.perf_counter() - wall


def phrases(one: Instruction) -> tuple[str, ...]:
    """What to find in the picture that is painted first."""
    return masks.split_phrases(one.target_object if one.reverse else one.source_object)


def places(
    pictures: torch.Tensor, asked: Sequence[tuple[int, tuple[str, ...]]], models: ModelSet, knobs: Params
) -> list[torch.Tensor | None]:
    """Precise masks bool [H, W] of the phrases in the pictures, None where there is none to trust."""
    queries = sorted({(row, phrase) for row, some in asked for phrase in some})
    found = masks.locate_objects(models.detector, models.segmenter, pictures, queries, knobs.bounds, knobs.rows_per_batch)
    unions = [masks.union_mask([found[row, one] for one in some], pictures[0, 0], knobs.bounds) for row, some in asked]
    return [one if isinstance(one, torch.Tensor) else None for one in unions]


@dataclass(frozen=True)
class Ours:
    """Soft-mask control as the station `pairs` does it; `mask`: soft, hard (the precise mask alone) or none."""

    mask: str
    shared: bool  # instructions with the same first picture share it
    menu: bool = False  # the candidates of a menu instead of the recipes
    strategy: Strategy = AllCandidates(kind="all")  # noqa: RUF009  frozen
    trial_counts: TrialCounts = field(default_factory=Counter)

    def learn(self, won: Iterable[tuple[Painted, bool]]) -> None:
        """What the gates said of a block, for the choices in the next ones."""
        if self.strategy.kind == "bandit":
            self.trial_counts.update((self.strategy.arm(one.instruction.task, one.area, one.candidate), yes) for one, yes in won)

    def generate(self, name: str, some: Sequence[Instruction], models: ModelSet, knobs: Params, clock: Clock) -> list[Painted]:
        """The candidates of the recipes, or of the menu: all, or those the bandit chooses."""
        keys = [first_caption(one) if self.shared else f"{first_caption(one)}\n{one.id}" for one in some]
        rows = {key: row for row, key in enumerate(sorted(set(keys)))}
        captions = [key.partition("\n")[0] for key in rows]
        seeds = [seed_for("pairs", "source", caption) for caption in captions]
        with clock.on(name, 0, "sources"):
            trajectory, sources = batching.sources(models.sampler, captions, seeds, knobs.guidance, knobs.rows_per_batch)
        at = [rows[key] for key in keys]
        with clock.on(name, 0, "masks"):
            found: list[torch.Tensor | None] = [torch.ones(1)] * len(some)
            if self.mask != "none":
                found = places(sources, [(row, phrases(one)) for row, one in zip(at, some, strict=True)], models, knobs)
        jobs = []
        for one, row, P_ in zip(some, at, found, strict=True):
            if P_ is None:
                continue
            caption = one.source_caption if one.reverse else one.target_caption
            candidates, area = self._candidates(one.task, knobs), float(P_.float().mean())
            for k in bandit.choose(self.strategy, one.task, area, len(candidates), self.trial_counts, one.id):
                c = candidates[k]
                fractions = (c.source_fraction, c.self_fraction, c.blend_from, c.blend_to)
                jobs.append((one, k, area, Variant(row, caption, self._soft(c, P_, sources), *fractions, c.guidance)))
        jobs.sort(key=lambda job: job[-1].source)
        with clock.on(name, 0, "edits"):
            wanted = [variant for *_, variant in jobs]
            pictures = torch.cat(list(batching.variants(models.sampler, trajectory, wanted, knobs.rows_per_batch)))
        made, firsts = [], list(sources)  # each is one object, embedded once
        for (one, k, area, variant), second in zip(jobs, pictures, strict=True):
            first = firsts[variant.source]
            made.append(Painted(one, k, *((second, first) if one.reverse else (first, second)), area))
        return made

    def _candidates(self, task: str, knobs: Params) -> Sequence[Candidate]:
        own = knobs.recipes.of(task)
        if not self.menu:
            return own
        mask = own[0].mask
        assert mask is not None
        radii = (mask.radius_px,) if mask.complement else MENU_RADIUS_PX
        masked = [own[0].model_copy(update={"mask": mask.model_copy(update={"radius_px": radius})}) for radius in radii]
        return [one.model_copy(update={"self_fraction": share}) for one in masked for share in MENU_SELF]

    def _soft(self, c: Candidate, P_: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if self.mask == "none":
            return torch.ones(1, *like.shape[-2:])
        assert c.mask is not None
        hard = {"w_p": 1.0, "w_s": 0.0, "w_b": 0.0, "radius_px": 0.0, "sigma_px": 0.0}
        return (c.mask if self.mask == "soft" else c.mask.model_copy(update=hard)).soft_mask(P_)


@dataclass(frozen=True)
class InstructPix2Pix:
    """Two fresh pictures a candidate; how long attention is the source's, and the guidance, are drawn for each."""

    rounds: int

    def generate(self, name: str, some: Sequence[Instruction], models: ModelSet, knobs: Params, clock: Clock) -> list[Painted]:
        """`rounds` candidates of every instruction."""
        made, base_model = [], prompt_to_prompt.PromptToPrompt(models.sampler.base_model, knobs.steps, models.sampler.dtype)
        per_batch = knobs.rows_per_batch // 2
        for k in range(self.rounds):
            for part in (some[i : i + per_batch] for i in range(0, len(some), per_batch)):
                chances = [rng("bench", "instruct_pix2pix", one.id, k) for one in part]
                p = [chance.uniform(*P) for chance in chances]
                guidance = [chance.uniform(*CFG) * knobs.guidance / STABLE_DIFFUSION_GUIDANCE for chance in chances]
                seeds = [seed_for("bench", "instruct_pix2pix", one.id, k) for one in part]
                first = [math.ceil(share * (knobs.steps - 1)) / knobs.steps for share in p]  # their p > i / (S - 1)
                edits = [
                    prompt_to_prompt.instruct_pix2pix(g, one.target_caption, first[g], guidance[g]) for g, one in enumerate(part)
                ]
                with clock.on(name, k, "edits"):
                    z = base_model.generate([one.source_caption for one in part], seeds, guidance, edits)
                    sources, targets = (batching.decoded(base_model.base_model, latents, knobs.rows_per_batch) for latents in z)
                made += [Painted(one, k, sources[g], targets[g]) for g, one in enumerate(part)]
        return made


@dataclass(frozen=True)
class PromptToPrompt:
    """One candidate; edits of one source caption share its picture."""

    blend: bool
    tokens_share: float  # layers in which self-attention is taken and words are sought: their tokens, as a share of the latents'

    def generate(self, name: str, some: Sequence[Instruction], models: ModelSet, knobs: Params, clock: Clock) -> list[Painted]:
        """One candidate of every instruction."""
        made, base_model = [], prompt_to_prompt.PromptToPrompt(models.sampler.base_model, knobs.steps, models.sampler.dtype)
        guidance = GUIDANCE * knobs.guidance / STABLE_DIFFUSION_GUIDANCE
        height, width = (n // base_model.base_model.factor for n in base_model.base_model.size)
        tokens = round(height * width * self.tokens_share)
        blend = prompt_to_prompt.LocalBlend(tokens, **BLEND) if self.blend else None
        like = prompt_to_prompt.PromptToPromptEdit(0, "", CROSS, SELF, tokens, guidance, blend=blend)
        for part in _together(some, knobs.rows_per_batch):
            captions = list(dict.fromkeys(one.source_caption for one in part))
            seeds = [seed_for("pairs", "source", caption) for caption in captions]
            edits = [replace(like, source=captions.index(one.source_caption), caption=one.target_caption) for one in part]
            with clock.on(name, 0, "edits"):
                z = base_model.generate(captions, seeds, [guidance] * len(captions), edits)
                sources, targets = (batching.decoded(base_model.base_model, latents, knobs.rows_per_batch) for latents in z)
            firsts = list(sources)  # each is one object, embedded once
            made += [Painted(one, 0, firsts[e.source], t) for one, e, t in zip(part, edits, targets, strict=True)]
        return made


def _together(some: Sequence[Instruction], rows: int) -> Iterator[list[Instruction]]:
    """Batches of at most `rows` sources and edits, those of one source caption next to each other."""
    part: list[Instruction] = []
    for one in sorted(some, key=lambda one: one.source_caption):
        if len(part) + 1 + len({other.source_caption for other in [*part, one]}) > rows:
            yield part
            part = []
        part.append(one)
    if part:
        yield part


def _bandit(per_instruction: int) -> BanditStrategy:
    """Its gates are asked by the bench: `learn` is told what passed."""
    return BanditStrategy(kind="bandit", per_instruction=per_instruction, shards_per_round=1, sizes=SIZES, gates={"default": {}})


METHODS: dict[str, Ours | InstructPix2Pix | PromptToPrompt] = {
    "ours": Ours("soft", shared=True),
    "ours_without_sharing": Ours("soft", shared=False),
    "ours_hard_mask": Ours("hard", shared=True),
    "ours_no_mask": Ours("none", shared=True),
    "ours_menu_all": Ours("soft", shared=True, menu=True),
    "ours_menu_bandit_1": Ours("soft", shared=True, menu=True, strategy=_bandit(1)),
    "ours_menu_bandit_2": Ours("soft", shared=True, menu=True, strategy=_bandit(2)),
    "instruct_pix2pix": InstructPix2Pix(rounds=4),
    "p2p": PromptToPrompt(blend=False, tokens_share=0.25),
    "p2p_local_blend": PromptToPrompt(blend=True, tokens_share=0.25),
}
