"""Station `pairs`: instructions -> before/after pictures under soft masks, with every raw score. Nothing is judged here.

In: `data/instructions`. Out: `data/pairs/shard-*.parquet` of Pair (every candidate of every instruction),
`dropped-*.parquet` of Drop, `summary.json`. Instructions that share their first picture share a shard and paint it once.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from emuedit import params as house
from emuedit.models import pixels
from emuedit.records import (
    Drop,
    Instruction,
    Pair,
    Summary,
    encode_png,
    fingerprint,
    publish,
    read_folder,
    read_shard,
    scratch_folder,
    write_shard,
)
from emuedit.runtime import Runtime, seed_for
from emuedit.synthesis import batches, masks, scores
from emuedit.synthesis.recipes import Candidate, Recipes, described, is_drawn
from emuedit.synthesis.scores import Edit
from emuedit.synthesis.studio import Studio
from emuedit.synthesis.trajectory import Trajectory, Variant

IN, OUT = "data/instructions", "data/pairs"


class PairsError(ValueError):
    """Raised for instructions of which no pair can be made."""


class Params(house.Params):
    """Knobs of the station."""

    world: house.World
    """The world: its painter paints, its detector and segmenter find, its judges score, its annotators draw."""
    device: str
    """Where networks run: auto, cuda, mps or cpu."""
    dtype: str
    """Number format of the painter: auto, float32, bfloat16 or float16."""
    steps: int = Field(ge=1)
    """Steps of the scheduler, for sources and candidates alike."""
    guidance: float = Field(ge=1)
    """Classifier-free guidance of the first picture."""
    rows_per_batch: int = Field(ge=2)
    """Pictures that go through a network together, sources included."""
    instructions_per_shard: int = Field(ge=1)
    """A shard is closed when it holds this many; the unit of work that a restart does not repeat."""
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
class _Place:
    """Where an instruction works: the mask, and the box of the first object."""

    first: int
    P: torch.Tensor  # bool [H, W]
    box_px: torch.Tensor  # [4]


def first_caption(one: Instruction) -> str:
    """What is painted first."""
    return one.target_caption if one.reverse else one.source_caption


def shards(instructions: Sequence[Instruction], per_shard: int) -> list[list[Instruction]]:
    """Instructions by first caption; those that share one stay together. The order they came in does not matter."""
    groups: dict[str, list[Instruction]] = defaultdict(list)
    for one in sorted(instructions, key=lambda one: (first_caption(one), one.id)):
        groups[first_caption(one)].append(one)
    made: list[list[Instruction]] = [[]]
    for group in groups.values():
        if len(made[-1]) >= per_shard:
            made.append([])
        made[-1] += group
    return made


def make_shard(instructions: Sequence[Instruction], studio: Studio, params: Params) -> tuple[list[Pair], list[Drop]]:
    """The heart: the instructions of one shard -> all their pairs, and what could not be made. The same on every worker."""
    firsts = sorted({first_caption(one) for one in instructions})
    row = {caption: g for g, caption in enumerate(firsts)}
    seeds = [seed_for("pairs", "source", caption) for caption in firsts]
    trajectory, sources = batches.sources(studio.sampler, firsts, seeds, params.guidance, params.rows_per_batch)
    places = _places(instructions, row, sources, studio, params)
    made = [*_painted(instructions, places, trajectory, studio, params), *_drawn(instructions, places, sources, studio)]
    reasons = {name: place for name, place in places.items() if isinstance(place, str)}
    settled = {one.instruction.id for one in made} | set(reasons)
    reasons |= {one.id: "annotator_refused" for one in instructions if one.id not in settled}
    order = {one.id: n for n, one in enumerate(instructions)}
    made.sort(key=lambda one: (order[one.instruction.id], one.recipe["candidate"]))
    drops = [Drop(one.id, reasons[one.id], IN, n) for n, one in enumerate(instructions) if one.id in reasons]
    return _pairs(made, sources, seeds, studio, params), drops


def _objects(one: Instruction, params: Params) -> tuple[str, ...]:
    """Phrases to find in the first picture; none for an edit of the whole picture."""
    candidates = params.recipes.of(one.task)
    if candidates and all(candidate.mask is None for candidate in candidates):
        return ()
    return masks.phrases(one.target_object if one.reverse else one.source_object)


def _places(
    instructions: Sequence[Instruction], row: dict[str, int], sources: torch.Tensor, studio: Studio, params: Params
) -> dict[str, _Place | str]:
    """By id: where each instruction works, or the reason why that is not known."""
    wanted = {one.id: [(row[first_caption(one)], phrase) for phrase in _objects(one, params)] for one in instructions}
    queries = sorted({query for own in wanted.values() for query in own})
    found = masks.find(studio.detector, studio.segmenter, sources, queries, params.bounds, params.rows_per_batch)
    places: dict[str, _Place | str] = {}
    for one in instructions:
        own = [found[query] for query in wanted[one.id]]
        P = masks.union(own, sources[0, 0], params.bounds)
        if not own and any(c.mask is not None and not c.mask.complement for c in params.recipes.of(one.task)):
            P = "no_object"
        box = own[0].box_px if own and own[0] is not None else torch.zeros(4)
        places[one.id] = P if isinstance(P, str) else _Place(row[first_caption(one)], P, box)
    return places


def _painted(
    instructions: Sequence[Instruction], places: dict[str, _Place | str], trajectory: Trajectory, studio: Studio, params: Params
) -> list[_Made]:
    """The second pictures that the painter makes."""
    jobs: list[tuple[Instruction, int, Candidate, Variant]] = []
    for one in instructions:
        place = places[one.id]
        if isinstance(place, str):
            continue
        caption = one.source_caption if one.reverse else one.target_caption
        for k, c in enumerate(params.recipes.of(one.task)):
            M = torch.ones(1, *place.P.shape) if c.mask is None else c.mask.soft(place.P)
            fractions = (c.source_fraction, c.self_fraction, c.blend_from, c.blend_to)
            jobs.append((one, k, c, Variant(place.first, caption, M, *fractions, c.guidance)))
    if not jobs:
        return []
    jobs.sort(key=lambda job: job[3].source)
    variants = [variant for *_, variant in jobs]
    pictures = torch.cat(list(batches.variants(studio.sampler, trajectory, variants, params.rows_per_batch)))
    facts = {"steps": params.steps, "source_guidance": params.guidance, "scheduler": type(studio.sampler.scheduler).__name__}
    return [
        _Made(one, variant.source, picture, None if c.mask is None else variant.M, described(c, k, **facts))
        for (one, k, c, variant), picture in zip(jobs, pictures, strict=True)
    ]


def _drawn(
    instructions: Sequence[Instruction], places: dict[str, _Place | str], sources: torch.Tensor, studio: Studio
) -> list[_Made]:
    """The second pictures that the world's annotators draw, all of a task at once."""
    by_task: dict[str, list[tuple[Instruction, _Place]]] = defaultdict(list)
    for one in instructions:
        place = places[one.id]
        if is_drawn(one.task) and isinstance(place, _Place):
            by_task[one.task].append((one, place))
    made = []
    for name, work in sorted(by_task.items()):
        shown = pixels.to_uint8(sources[[place.first for _, place in work]])
        words = [one.target_object or "" for one, _ in work]
        boxes = np.stack([place.box_px.numpy() for _, place in work])
        drawn, fine = studio.annotate(name, shown, words, boxes, np.stack([place.P.numpy() for _, place in work]))
        for (one, place), picture, good in zip(work, pixels.from_uint8(drawn), fine, strict=True):
            if good:
                made.append(_Made(one, place.first, picture, None, {"kind": "annotate", "candidate": 0}))
    return made


def _pairs(made: Sequence[_Made], sources: torch.Tensor, seeds: Sequence[int], studio: Studio, params: Params) -> list[Pair]:
    """Scored and put into records; what was built backwards is turned round here."""
    if not made:
        return []
    pictures = torch.cat([sources, torch.stack([one.picture for one in made])])
    edits = []
    for n, one in enumerate(made, start=len(sources)):
        what = one.instruction
        source, target = (n, one.first) if what.reverse else (one.first, n)
        local = bool(_objects(what, params))
        stays = any(c.mask is not None and c.mask.complement for c in params.recipes.of(what.task))
        objects = (what.source_object if local else None, what.target_object if local and not stays else None)
        edits.append(Edit(source, target, one.M, what.source_caption, what.target_caption, *objects))
    raw = scores.raw(pictures, edits, studio.judges, params.rows_per_batch)
    png = [encode_png(picture) for picture in pixels.to_uint8(pictures)]
    return [
        Pair(
            instruction_id=one.instruction.id,
            parent_ids=(one.instruction.id, one.instruction.caption_id),
            task=one.instruction.task,
            instruction=one.instruction.text,
            source_caption=one.instruction.source_caption,
            target_caption=one.instruction.target_caption,
            seed=seeds[one.first],
            model_revision=studio.revision,
            recipe=one.recipe,
            source=png[edit.source],
            target=png[edit.target],
            mask=None if one.M is None else encode_png((one.M[0] * 255).round().to(torch.uint8).numpy()),
            scores=own,
        )
        for one, edit, own in zip(made, edits, raw, strict=True)
    ]


def run(params: Params, root: Path) -> Summary:
    """Make the shards that an earlier run did not leave in scratch, publish to `data/pairs`."""
    instructions = list(read_folder(root / IN, Instruction))
    if not instructions:
        raise PairsError(f"want instructions in {root / IN}, got none; run the station instructions")
    studio = Studio(params.world, root, Runtime.choose(params.device, params.dtype), params.steps)
    knobs = params.model_dump(mode="json", by_alias=True)
    here = Path(__file__).parent
    code = [Path(__file__), *(path for part in ("core", "models", "synthesis") for path in sorted((here / part).glob("*.py")))]
    inputs = sorted((root / IN).glob("shard-*.parquet"))
    scratch = scratch_folder(root, "pairs", fingerprint(knobs, *inputs, *studio.files(), *code))
    counts: Counter[str] = Counter()
    work = shards(instructions, params.instructions_per_shard)
    with tqdm(total=sum(_expected(one, params) for one in instructions), unit="pair", desc="pairs") as bar:
        for number, some in enumerate(work):
            pair_path, drop_path = scratch / f"shard-{number:05d}.parquet", scratch / f"dropped-{number:05d}.parquet"
            if pair_path.exists():  # written after its drops, so both are there
                pairs, drops = read_shard(pair_path, Pair), read_shard(drop_path, Drop)
            else:
                pairs, drops = make_shard(some, studio, params)
                write_shard(drop_path, drops, Drop)
                write_shard(pair_path, pairs, Pair)
            counts["pairs"] += len(pairs)
            counts.update(f"pairs_{one.task}" for one in pairs)
            counts.update(f"dropped_{one.reason}" for one in drops)
            bar.update(sum(_expected(one, params) for one in some))
    if not counts["pairs"]:
        raise PairsError(f"want at least one pair, got {dict(counts)}; see {scratch}/dropped-*.parquet")
    return publish(scratch, root / OUT, "pairs", knobs, counts)


def _expected(one: Instruction, params: Params) -> int:
    return len(params.recipes.of(one.task)) or 1


if __name__ == "__main__":
    run(house.load(Params, "pairs"), Path())
