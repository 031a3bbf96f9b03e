"""The core of the stage `pairs`: the instructions of one shard -> their pairs, with every raw score.

Sources are generated once per caption or read, objects are located in them, candidates are generated or annotated, and all are
scored. The result depends only on the instructions, params and models, not on the worker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from emuedit.data.png import encode_png
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.models import image_tensors
from emuedit.runtime import seed_for
from emuedit.synthesis import batching, masks
from emuedit.synthesis.candidate import Candidate, Job, Region, SynthesisParams, source_caption, variant_caption
from emuedit.synthesis.methods.diffedit import CaptionContrast, difference_masks
from emuedit.synthesis.methods.prompt_to_prompt import PromptToPrompt
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.pair_scores import ScoredEdit, score_pairs
from emuedit.synthesis.recipes import (
    PromptToPromptRecipe,
    SoftMaskRecipe,
    describe_annotation,
    describe_recipe,
    edits_complement,
    recipes_for,
)
from emuedit.synthesis.rejection import Rejected
from emuedit.synthesis.sampler import Sampler
from emuedit.synthesis.shard_sources import captions_fit, make_sources
from emuedit.synthesis.strategy import TrialCounts, choose_candidates
from emuedit.tasks import get_task

IN = "data/instructions"

ReportShare = Callable[[float], None]
"""Called with the share of a shard finished since the last call."""


def make_shard(
    instructions: Sequence[Instruction],
    models: ModelSet,
    params: SynthesisParams,
    trial_counts: TrialCounts,
    report: ReportShare | None = None,
) -> tuple[list[Pair], list[Drop]]:
    """All pairs of a shard, and its instructions without pairs, with reasons.

    `trial_counts`: successes and failures of the recipes in earlier rounds; empty for the strategy `all`.
    """
    work = ShardMaker(instructions, models, params, report)
    regions = work.locate()
    candidates = [*work.generate(regions, trial_counts), *work.annotate(regions)]
    order = {instruction.id: number for number, instruction in enumerate(instructions)}
    candidates.sort(key=lambda candidate: (order[candidate.instruction.id], candidate.description["candidate"]))
    return work.score(candidates), work.drops(regions, candidates)


class ShardMaker:
    """The shared state of a shard's steps: sources and networks."""

    def __init__(
        self, instructions: Sequence[Instruction], models: ModelSet, params: SynthesisParams, report: ReportShare | None
    ) -> None:
        self.instructions, self.models, self.params = instructions, models, params
        self.usable = [instruction for instruction in instructions if captions_fit(instruction, models.base_model)]
        rows_to_come = params.estimate_rows(self.usable)
        # A bound method would make a reference cycle, and the memory of the shard's sources would be freed late.
        count_rows = None if report is None else (lambda rows: report(rows / rows_to_come))
        self.sampler = Sampler(models.base_model, params.steps, models.runtime.torch_dtype, params.guidance_interval, count_rows)
        self.sources = make_sources(self.usable, self.sampler, params, models.root)

    def locate(self) -> dict[str, Region | Rejected]:
        """Instruction id -> region, or the reason why there is none."""
        queries_of = {
            instruction.id: [(self.sources.row(instruction), phrase) for phrase in self._phrases(instruction)]
            for instruction in self.usable
            if self._needs_objects(instruction)
        }
        queries = sorted({query for queries in queries_of.values() for query in queries})
        with_all = {query for i in self.usable if i.task in self.params.all_instances for query in queries_of.get(i.id, ())}
        limits, batch, models = self.params.detection_limits, self.params.rows_per_batch, self.models
        located = masks.locate_objects(models.detector, models.segmenter, self.sources.images, queries, limits, batch, with_all)
        fits = {instruction.id for instruction in self.usable}
        regions: dict[str, Region | Rejected] = {
            instruction.id: Rejected("caption_too_long") for instruction in self.instructions if instruction.id not in fits
        }
        difference = self._difference_masks()
        for instruction in self.usable:
            objects = [located[query] for query in queries_of.get(instruction.id, ())]
            regions[instruction.id] = self._region(instruction, objects, difference.get(instruction.id, {}))
        return regions

    def generate(self, regions: dict[str, Region | Rejected], trial_counts: TrialCounts) -> list[Candidate]:
        """Generate candidates with the base model."""
        jobs, trajectory = sorted(self._jobs(regions, trial_counts), key=lambda job: job.source), self.sources.trajectory
        if trajectory is None:
            return []
        variants = [(job, job.variant(job.recipe)) for job in jobs if isinstance(job.recipe, SoftMaskRecipe)]
        edits = [(job, job.prompt_to_prompt_edit(job.recipe)) for job in jobs if isinstance(job.recipe, PromptToPromptRecipe)]
        if len(variants) + len(edits) < len(jobs):
            raise TypeError("want recipes of the types that are generated here, got another; add its batches to `generate`")
        max_rows, sources = self.params.rows_per_batch, self.sources
        method = PromptToPrompt(self.sampler)
        batches = [
            *batching.generate_variants(self.sampler, trajectory, [variant for _, variant in variants], max_rows),
            *batching.generate_edits(
                method, sources.captions, sources.seeds, self.params.guidance_scale, [edit for _, edit in edits], max_rows
            ),
        ]
        pictures = [picture for batch in batches for picture in batch]
        return [
            Candidate(job.instruction, job.source, picture, None if job.recipe.mask is None else job.M, job.description)
            for (job, _), picture in zip([*variants, *edits], pictures, strict=True)
        ]

    def annotate(self, regions: dict[str, Region | Rejected]) -> list[Candidate]:
        """Annotate the targets of the vision tasks, at most `rows_per_batch` images of a task together."""
        by_task: dict[str, list[tuple[Instruction, Region]]] = defaultdict(list)
        for instruction in self.usable:
            region = regions[instruction.id]
            if get_task(instruction.task).annotated and isinstance(region, Region):
                by_task[instruction.task].append((instruction, region))
        batch = self.params.rows_per_batch
        batches = [(task, work[i : i + batch]) for task, work in sorted(by_task.items()) for i in range(0, len(work), batch)]
        candidates = []
        for task, work in batches:
            pictures = image_tensors.to_uint8(self.sources.images[[region.source for _, region in work]])
            words = [instruction.target_object or "" for instruction, _ in work]
            boxes_px = np.stack([region.box_px.numpy() for _, region in work])
            object_masks = np.stack([region.P.numpy() for _, region in work])
            targets, valid = self.models.annotate(task, pictures, words, boxes_px, object_masks)
            for (instruction, region), target, is_valid in zip(work, image_tensors.from_uint8(targets), valid, strict=True):
                if is_valid:
                    candidates.append(Candidate(instruction, region.source, target, None, describe_annotation(instruction)))
        return candidates

    def score(self, candidates: Sequence[Candidate]) -> list[Pair]:
        """Score the candidates and convert them to records. For reversed tasks, source and target are swapped here."""
        if not candidates:
            return []
        pictures = torch.cat([self.sources.images, torch.stack([candidate.picture for candidate in candidates])])
        numbered = enumerate(candidates, start=len(self.sources.images))
        edits = [self._scored_edit(candidate, picture) for picture, candidate in numbered]
        scores = score_pairs(pictures, edits, self.models.scorers, self.params.rows_per_batch)
        pngs = [encode_png(picture) for picture in image_tensors.to_uint8(pictures)]
        return [
            Pair(
                instruction_id=candidate.instruction.id,
                parent_ids=(candidate.instruction.id, candidate.instruction.caption_id),
                task=candidate.instruction.task,
                instruction=candidate.instruction.text,
                source_caption=candidate.instruction.source_caption,
                target_caption=candidate.instruction.target_caption,
                seed=self.sources.seed(candidate.source),
                model_revision=self.models.revision,
                recipe=candidate.description,
                source=pngs[edit.source],
                target=pngs[edit.target],
                mask=None if candidate.M is None else encode_png((candidate.M[0] * 255).round().to(torch.uint8).numpy()),
                scores=pair_scores,
            )
            for candidate, edit, pair_scores in zip(candidates, edits, scores, strict=True)
        ]

    def drops(self, regions: dict[str, Region | Rejected], candidates: Sequence[Candidate]) -> list[Drop]:
        """The instructions without a candidate: rejected in `locate` or by the annotator."""
        reasons = {name: region.reason for name, region in regions.items() if isinstance(region, Rejected)}
        with_candidate = {candidate.instruction.id for candidate in candidates}
        drops = []
        for number, instruction in enumerate(self.instructions):
            if instruction.id in reasons or instruction.id not in with_candidate:
                drops.append(Drop(instruction.id, reasons.get(instruction.id, "annotator_refused"), IN, number))
        return drops

    def _region(
        self,
        instruction: Instruction,
        objects: list[masks.LocatedObject | None],
        difference: dict[int, Tensor | Rejected],
    ) -> Region | Rejected:
        if rejected := self._reject_unlocated(instruction, objects, difference):
            return rejected
        is_complement = edits_complement(recipes_for(self.params.recipes, instruction.task))
        all_instances, like = instruction.task in self.params.all_instances, self.sources.images[0, 0]
        P = masks.union_mask(objects, like, self.params.detection_limits, all_instances, is_complement)
        if isinstance(P, Rejected):
            return P
        box_px = objects[0].box_px if objects and objects[0] is not None else torch.zeros(4)
        own_masks = {number: mask for number, mask in difference.items() if isinstance(mask, Tensor)}
        return Region(self.sources.row(instruction), P, box_px, own_masks)

    def _reject_unlocated(
        self,
        instruction: Instruction,
        objects: list[masks.LocatedObject | None],
        difference: dict[int, Tensor | Rejected],
    ) -> Rejected | None:
        """Why a recipe cannot be used for the instruction, regardless of the detections; None if all can."""
        recipes = recipes_for(self.params.recipes, instruction.task)
        for mask in difference.values():
            if isinstance(mask, Rejected):
                return mask
        if not objects and any(recipe.mask is not None and recipe.mask.needs_named_objects for recipe in recipes):
            return Rejected("no_object")
        return None

    def _jobs(self, regions: dict[str, Region | Rejected], trial_counts: TrialCounts) -> list[Job]:
        facts = {
            "steps": self.params.steps,
            "source_guidance_scale": self.params.guidance_scale,
            "guidance_interval": list(self.params.guidance_interval),
            "scheduler": type(self.sampler.denoiser().scheduler).__name__,
        }
        jobs = []
        for instruction in self.usable:
            region = regions[instruction.id]
            if isinstance(region, Rejected):
                continue
            recipes = recipes_for(self.params.recipes, instruction.task)
            for number in choose_candidates(
                self.params.strategy, instruction.task, region.area, len(recipes), trial_counts, instruction.id
            ):
                recipe = recipes[number]
                M = torch.ones(1, *region.P.shape)
                if recipe.mask is not None:
                    M = recipe.mask.soft_mask(region.difference_masks.get(number, region.P))
                description = describe_recipe(recipe, number, object_area=region.area, **facts)
                jobs.append(Job(instruction, recipe, description, region.source, M))
        return jobs

    def _difference_masks(self) -> dict[str, dict[int, Tensor | Rejected]]:
        """Instruction id -> recipe number -> mask from the base model's predictions (DiffEdit)."""
        contrasts = {
            (instruction.id, number): CaptionContrast(
                self.sources.row(instruction), source_caption(instruction), variant_caption(instruction),
                recipe.mask.noise_difference,
            )
            for instruction in self.usable
            for number, recipe in enumerate(recipes_for(self.params.recipes, instruction.task))
            if recipe.mask is not None and recipe.mask.noise_difference is not None
        }  # fmt: skip
        if self.sources.trajectory is None:
            return {}
        seeds = [seed_for("pairs", "difference", caption) for caption in self.sources.captions]
        z_0, size = self.sources.trajectory.z[-1], self.models.base_model.size
        found_masks = difference_masks(self.sampler, z_0, seeds, list(contrasts.values()), size, self.params.rows_per_batch)
        by_instruction: dict[str, dict[int, Tensor | Rejected]] = defaultdict(dict)
        for (name, number), mask in zip(contrasts, found_masks, strict=True):
            by_instruction[name][number] = mask
        return by_instruction

    def _scored_edit(self, candidate: Candidate, picture: int) -> ScoredEdit:
        """The edit to score between the source and `picture`, the candidate's row among all images.

        Objects are searched for if the instruction is about objects: the source's object always, the target's object unless it is
        a background. `picture` is the generated side. If the instruction names no object for that side, as for the result of a
        removal, it must be vacant inside the mask.
        """
        instruction = candidate.instruction
        is_about_objects = bool(self._phrases(instruction))
        replaces_object = is_about_objects and get_task(instruction.task).region != "background"
        source, target, generated_object = candidate.source, picture, instruction.target_object
        if instruction.reverse:
            source, target, generated_object = picture, candidate.source, instruction.source_object
        return ScoredEdit(
            source,
            target,
            candidate.M,
            instruction.source_caption,
            instruction.target_caption,
            source_object=instruction.source_object if is_about_objects else None,
            target_object=instruction.target_object if replaces_object else None,
            vacant=picture if replaces_object and not generated_object else None,
        )

    def _phrases(self, instruction: Instruction) -> tuple[str, ...]:
        """Phrases to detect in the source; none for an edit of the whole image."""
        recipes = recipes_for(self.params.recipes, instruction.task)
        if recipes and all(recipe.mask is None for recipe in recipes):
            return ()
        return masks.split_phrases(instruction.target_object if instruction.reverse else instruction.source_object)

    def _needs_objects(self, instruction: Instruction) -> bool:
        recipes = recipes_for(self.params.recipes, instruction.task)
        return get_task(instruction.task).annotated or any(
            recipe.mask is not None and recipe.mask.needs_objects for recipe in recipes
        )
