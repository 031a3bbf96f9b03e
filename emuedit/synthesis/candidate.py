"""The heart of the station `pairs`: the instructions of one shard -> their pairs, with every raw score."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field

from emuedit import config
from emuedit.data.png import encode_png
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.models import image_tensors
from emuedit.runtime import seed_for
from emuedit.synthesis import batching, masks, pair_scores
from emuedit.synthesis import strategy as bandit
from emuedit.synthesis.methods import diffedit, prompt_to_prompt
from emuedit.synthesis.methods.diffedit import Contrast
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.pair_scores import Edit
from emuedit.synthesis.recipes import Candidate, Recipes, Words, described, is_drawn
from emuedit.synthesis.sampler import Trajectory, Variant
from emuedit.synthesis.strategy import Strategy, TrialCounts

IN = "data/instructions"


class SynthesisParams(config.Params):
    """What decides a pair."""

    world: config.World
    """The world: its base_model paints, its detector and segmenter find, its judges score, its annotators draw."""
    steps: int = Field(ge=1)
    """Steps of the scheduler, for sources and candidates alike."""
    guidance: float = Field(ge=1)
    """Classifier-free guidance of the first picture."""
    rows_per_batch: int = Field(ge=2)
    """Pictures that go through a network together, sources included."""
    detector_threshold: float = Field(ge=0, lt=1)
    """Score above which an object counts as found."""
    nms_iou: float = Field(gt=0, le=1)
    """Boxes that overlap a better one by more are dropped."""
    min_area: float = Field(ge=0, le=1)
    """Smallest mask of an object, as a share of the picture."""
    max_area: float = Field(ge=0, le=1)
    """Largest one; more is the segmenter's mistake."""
    recipes: Recipes
    """Candidates of every painted task."""
    strategy: Strategy
    """Which of them an instruction is painted with."""

    @property
    def bounds(self) -> masks.Bounds:
        """What counts as found."""
        return masks.Bounds(self.detector_threshold, self.nms_iou, self.min_area, self.max_area)


@dataclass(frozen=True)
class _Made:
    """One second picture, not yet scored."""

    instruction: Instruction
    first: int  # row of the source
    picture: torch.Tensor  # [3, H, W]
    M: torch.Tensor | None  # [1, H, W]
    recipe: dict[str, Any]


@dataclass(frozen=True)
class _Job:
    """One second picture that the base_model is to make."""

    instruction: Instruction
    recipe: dict[str, Any]
    candidate: Candidate | Words
    first: int  # row of the source
    M: torch.Tensor  # [1, H, W]

    def variant(self, c: Candidate) -> Variant:
        """Held by its mask."""
        fractions = (c.source_fraction, c.self_fraction, c.blend_from, c.blend_to)
        return Variant(self.first, second_caption(self.instruction), self.M, *fractions, c.guidance)

    def edit(self, c: Words) -> prompt_to_prompt.Edit:
        """Held by its words."""
        fractions = (c.cross_fraction, c.self_fraction, c.self_tokens)
        blend = None if c.blend is None else prompt_to_prompt.Blend(c.blend.n_tokens, c.blend.threshold, c.blend.start)
        said = second_caption(self.instruction)
        return prompt_to_prompt.Edit(self.first, said, *fractions, c.guidance, c.null_too, blend=blend)


@dataclass(frozen=True)
class _Place:
    """Where an instruction works: the mask, and the box of the first object."""

    first: int
    P: torch.Tensor  # bool [H, W], of the objects
    box_px: torch.Tensor  # [4]
    differing: dict[int, torch.Tensor]  # P of the candidates that ask the base_model for theirs


def first_caption(one: Instruction) -> str:
    """What is painted first."""
    return one.target_caption if one.reverse else one.source_caption


def second_caption(one: Instruction) -> str:
    """What is made of it."""
    return one.source_caption if one.reverse else one.target_caption


def make_shard(
    instructions: Sequence[Instruction], models: ModelSet, knobs: SynthesisParams, trial_counts: TrialCounts
) -> tuple[list[Pair], list[Drop]]:
    """The instructions of one shard -> all their pairs, and what could not be made. The same on every worker.

    `trial_counts` is what earlier rounds of shards have shown about the candidates; nothing under a strategy of kind `all`.
    """
    firsts = sorted({first_caption(one) for one in instructions})
    row = {caption: g for g, caption in enumerate(firsts)}
    seeds = [seed_for("pairs", "source", caption) for caption in firsts]
    trajectory, sources = batching.sources(models.sampler, firsts, seeds, knobs.guidance, knobs.rows_per_batch)
    places = _places(instructions, row, sources, _differing(instructions, row, trajectory, models, knobs), models, knobs)
    painted = _painted(instructions, places, row, seeds, trajectory, models, knobs, trial_counts)
    made = [*painted, *_drawn(instructions, places, sources, models)]
    reasons = {name: place for name, place in places.items() if isinstance(place, str)}
    settled = {one.instruction.id for one in made} | set(reasons)
    reasons |= {one.id: "annotator_refused" for one in instructions if one.id not in settled}
    order = {one.id: n for n, one in enumerate(instructions)}
    made.sort(key=lambda one: (order[one.instruction.id], one.recipe["candidate"]))
    drops = [Drop(one.id, reasons[one.id], IN, n) for n, one in enumerate(instructions) if one.id in reasons]
    return _pairs(made, sources, seeds, models, knobs), drops


def _objects(one: Instruction, knobs: SynthesisParams) -> tuple[str, ...]:
    """Phrases to find in the first picture; none for an edit of the whole picture."""
    candidates = knobs.recipes.of(one.task)
    if candidates and all(candidate.mask is None for candidate in candidates):
        return ()
    return masks.phrases(one.target_object if one.reverse else one.source_object)


def _differing(
    instructions: Sequence[Instruction], row: dict[str, int], trajectory: Trajectory, models: ModelSet, knobs: SynthesisParams
) -> dict[str, dict[int, torch.Tensor | str]]:
    """By id and candidate: the masks that are asked of the base_model, or the reason why there is none."""
    asked = {
        (one.id, k): Contrast(row[first_caption(one)], first_caption(one), second_caption(one), c.mask.noise_difference)
        for one in instructions
        for k, c in enumerate(knobs.recipes.of(one.task))
        if c.mask is not None and c.mask.noise_difference is not None
    }
    seeds = [seed_for("pairs", "difference", caption) for caption in row]
    size, wanted = models.sampler.base_model.size, list(asked.values())
    found = diffedit.found(models.sampler, trajectory.z[-1], seeds, wanted, size, knobs.rows_per_batch)
    differing: dict[str, dict[int, torch.Tensor | str]] = defaultdict(dict)
    for (name, k), P in zip(asked, found, strict=True):
        differing[name][k] = P
    return differing


def _places(
    instructions: Sequence[Instruction],
    row: dict[str, int],
    sources: torch.Tensor,
    differing: dict[str, dict[int, torch.Tensor | str]],
    models: ModelSet,
    knobs: SynthesisParams,
) -> dict[str, _Place | str]:
    """By id: where each instruction works, or the reason why that is not known."""
    seeking = [one for one in instructions if is_drawn(one.task) or any(c.needs_objects for c in knobs.recipes.of(one.task))]
    wanted = {one.id: [(row[first_caption(one)], phrase) for phrase in _objects(one, knobs)] for one in seeking}
    queries = sorted({query for own in wanted.values() for query in own})
    found = masks.find(models.detector, models.segmenter, sources, queries, knobs.bounds, knobs.rows_per_batch)
    places: dict[str, _Place | str] = {}
    for one in instructions:
        own = [found[query] for query in wanted.get(one.id, ())]
        P = masks.union(own, sources[0, 0], knobs.bounds)
        if not own and any(c.needs_objects and not c.mask.complement for c in knobs.recipes.of(one.task) if c.mask):
            P = "no_object"
        box = own[0].box_px if own and own[0] is not None else torch.zeros(4)
        asked = differing.get(one.id, {})
        known = {k: mask for k, mask in asked.items() if isinstance(mask, torch.Tensor)}
        place = P if isinstance(P, str) else _Place(row[first_caption(one)], P, box, known)
        places[one.id] = next((mask for mask in asked.values() if isinstance(mask, str)), place)
        if any(isinstance(c, Words) and c.reads_words for c in knobs.recipes.of(one.task)) and not _fit(one, models):
            places[one.id] = "caption_too_long"
    return places


def _fit(one: Instruction, models: ModelSet) -> bool:
    """Whether the base_model reads both captions to their end."""
    tokenizer = models.sampler.base_model.tokenizer
    return all(
        len(tokenizer(text)["input_ids"]) <= tokenizer.model_max_length for text in (one.source_caption, one.target_caption)
    )


def _painted(
    instructions: Sequence[Instruction],
    places: dict[str, _Place | str],
    row: dict[str, int],
    seeds: Sequence[int],
    trajectory: Trajectory,
    models: ModelSet,
    knobs: SynthesisParams,
    trial_counts: TrialCounts,
) -> list[_Made]:
    """The second pictures that the base_model makes."""
    jobs: list[_Job] = []
    facts = {"steps": knobs.steps, "source_guidance": knobs.guidance, "scheduler": type(models.sampler.scheduler).__name__}
    for one in instructions:
        place = places[one.id]
        if isinstance(place, str):
            continue
        candidates, area = knobs.recipes.of(one.task), int(place.P.sum()) / place.P.numel()
        for k in bandit.choose(knobs.strategy, one.task, area, len(candidates), trial_counts, one.id):
            c = candidates[k]
            M = torch.ones(1, *place.P.shape) if c.mask is None else c.mask.soft(place.differing.get(k, place.P))
            jobs.append(_Job(one, described(c, k, object_area=area, **facts), c, place.first, M))
    jobs.sort(key=lambda job: job.first)
    by_mask = [(job, job.variant(c)) for job in jobs if isinstance(c := job.candidate, Candidate)]
    by_words = [(job, job.edit(c)) for job in jobs if isinstance(c := job.candidate, Words)]
    captions = list(row)
    painted = batching.variants(models.sampler, trajectory, [one for _, one in by_mask], knobs.rows_per_batch)
    edited = batching.by_words(
        models.by_words, captions, seeds, knobs.guidance, [one for _, one in by_words], knobs.rows_per_batch
    )
    done = [picture for part in (*painted, *edited) for picture in part]
    return [
        _Made(job.instruction, job.first, picture, None if job.candidate.mask is None else job.M, job.recipe)
        for (job, _), picture in zip([*by_mask, *by_words], done, strict=True)
    ]


def _drawn(
    instructions: Sequence[Instruction], places: dict[str, _Place | str], sources: torch.Tensor, models: ModelSet
) -> list[_Made]:
    """The second pictures that the world's annotators draw, all of a task at once."""
    by_task: dict[str, list[tuple[Instruction, _Place]]] = defaultdict(list)
    for one in instructions:
        place = places[one.id]
        if is_drawn(one.task) and isinstance(place, _Place):
            by_task[one.task].append((one, place))
    made = []
    for name, work in sorted(by_task.items()):
        shown = image_tensors.to_uint8(sources[[place.first for _, place in work]])
        words = [one.target_object or "" for one, _ in work]
        boxes = np.stack([place.box_px.numpy() for _, place in work])
        drawn, fine = models.annotate(name, shown, words, boxes, np.stack([place.P.numpy() for _, place in work]))
        for (one, place), picture, good in zip(work, image_tensors.from_uint8(drawn), fine, strict=True):
            if good:
                made.append(_Made(one, place.first, picture, None, {"kind": "annotate", "candidate": 0}))
    return made


def _pairs(
    made: Sequence[_Made], sources: torch.Tensor, seeds: Sequence[int], models: ModelSet, knobs: SynthesisParams
) -> list[Pair]:
    """Scored and put into records; what was built backwards is turned round here."""
    if not made:
        return []
    pictures = torch.cat([sources, torch.stack([one.picture for one in made])])
    edits = []
    for n, one in enumerate(made, start=len(sources)):
        what = one.instruction
        source, target = (n, one.first) if what.reverse else (one.first, n)
        local = bool(_objects(what, knobs))
        stays = any(c.mask is not None and c.mask.complement for c in knobs.recipes.of(what.task))
        objects = (what.source_object if local else None, what.target_object if local and not stays else None)
        empty = local and not stays and not (what.target_object if not what.reverse else what.source_object)
        vacant = n if empty else None  # what is built backwards is emptied, then turned round
        edits.append(Edit(source, target, one.M, what.source_caption, what.target_caption, *objects, vacant))
    raw = pair_scores.raw(pictures, edits, models.judges, knobs.rows_per_batch)
    png = [encode_png(picture) for picture in image_tensors.to_uint8(pictures)]
    return [
        Pair(
            instruction_id=one.instruction.id,
            parent_ids=(one.instruction.id, one.instruction.caption_id),
            task=one.instruction.task,
            instruction=one.instruction.text,
            source_caption=one.instruction.source_caption,
            target_caption=one.instruction.target_caption,
            seed=seeds[one.first],
            model_revision=models.revision,
            recipe=one.recipe,
            source=png[edit.source],
            target=png[edit.target],
            mask=None if one.M is None else encode_png((one.M[0] * 255).round().to(torch.uint8).numpy()),
            scores=own,
        )
        for one, edit, own in zip(made, edits, raw, strict=True)
    ]
