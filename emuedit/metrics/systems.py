"""The systems that an evaluation measures: the editor, and a baseline that returns its input. Each is one function."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from emuedit import config
from emuedit.data.image_io import Pixels
from emuedit.editor import sampling, task_pack
from emuedit.editor.any_size import edit_any_size, working_size_of
from emuedit.editor.package_layout import BUILT_IN_PACKS, EDITOR, ROUTER, find_packs
from emuedit.editor.sampling import EditSampler
from emuedit.editor.sampling_options import NO_OPTIONS, ReportStep, SamplingOptions
from emuedit.editor.settings import EditSettings
from emuedit.metrics.benchmark import Benchmark
from emuedit.models import image_tensors
from emuedit.predictor import task_predictor
from emuedit.predictor.task_predictor import NO_EDIT, TaskPredictor
from emuedit.runtime import Runtime

FEW_EDITS = 8
"""Batch size of edits and metrics after a stage ran out of memory, before it is divided by `divisor` (2 or more). Ours."""
System = Callable[[Benchmark, list[int]], tuple[Pixels, list[str]]]
"""N edits and N seeds -> outputs uint8 [N, H, W, 3], and the task used for each: `NO_EDIT` where nothing was edited."""


class Systems:
    """All systems by name, for one package (`emuedit.editor.package_folder`). Parts are loaded on first use.

    `systems[name]` raises ParamsError for an unknown name. `divisor`: if above 1, as after a stage ran out of memory, the batch
    is the smaller of `EditSampler.max_pixels_per_batch` and FEW_EDITS images, divided by it.
    """

    def __init__(
        self,
        package: Path,
        settings: EditSettings,
        runtime: Runtime,
        report: ReportStep | None = None,
        divisor: int = 1,
    ) -> None:
        self.package, self.settings, self.runtime, self._report, self.divisor = package, settings, runtime, report, divisor

    def __getitem__(self, name: str) -> System:
        systems: dict[str, System] = {
            "identity": self.identity, "emuedit": self.emuedit, "true_task": self.true_task,
        }  # fmt: skip
        if name not in systems:
            raise config.ParamsError(f"want systems from {', '.join(systems)}; got {name!r}")
        return systems[name]

    def identity(self, edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
        """Return the input images: nothing is edited, so everything that must not change is correct."""
        return edits.before, [edits.task] * len(seeds)

    def emuedit(self, edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
        """The editor with the predicted task; with the true task if the predictor cannot know it (pack without instructions).

        As in `Editor.edit`, an instruction that the predictor refuses edits nothing: the output is the input, its task `NO_EDIT`.
        """
        if edits.task in self.sampler.inverted_tasks and edits.task not in self.predictor.new_tasks:
            return self.true_task(edits, seeds)
        predictions = self.predictor.predict(edits.instructions, self.sampler.tasks)
        # refused instructions are sampled as well, so that the time of an edit does not depend on them (`measure_speed`)
        outputs, tasks = self._edit(edits, [prediction.task for prediction in predictions], seeds)
        refused = np.array([prediction.refused for prediction in predictions], bool)
        outputs = np.where(refused[:, None, None, None], edits.before, outputs)
        return outputs, [NO_EDIT if is_refused else task for task, is_refused in zip(tasks, refused, strict=True)]

    def true_task(self, edits: Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
        """The editor with the true task."""
        return self._edit(edits, [edits.task] * len(seeds), seeds)

    @cached_property
    def sampler(self) -> EditSampler:
        """The trained editor, with the tasks learned by inversion."""
        sampler = sampling.load(self.package / EDITOR, self.runtime)
        for pack in find_packs(self.package / BUILT_IN_PACKS):
            sampler.add_pack(pack)
        return sampler

    @cached_property
    def predictor(self) -> TaskPredictor:
        """The trained task predictor, which also knows the instructions of the packs."""
        predictor = task_predictor.load(str(self.package / ROUTER), self.runtime.device)
        for pack in map(task_pack.load, find_packs(self.package / BUILT_IN_PACKS)):
            if predictor.can_add(pack.instructions):
                predictor.add_task(pack.name, pack.instructions)
        return predictor

    def _edit(self, edits: Benchmark, tasks: list[str], seeds: list[int]) -> tuple[Pixels, list[str]]:
        if self.divisor > 1:
            height, width = edits.before.shape[1:3]
            few_pixels = FEW_EDITS * math.prod(working_size_of(self.sampler, self.settings, height, width))
            self.sampler.max_pixels_per_batch = min(sampling.MAX_PIXELS_PER_BATCH, few_pixels) // self.divisor
        return make_edits(self.sampler, edits, tasks, self.settings, seeds, SamplingOptions(report=self._report)), tasks


def make_edits(
    sampler: EditSampler,
    edits: Benchmark,
    tasks: list[str],
    settings: EditSettings,
    seeds: list[int],
    options: SamplingOptions = NO_OPTIONS,
) -> Pixels:
    """The editor's outputs for these tasks, uint8 [N, H, W, 3], made as those of `Editor.edit`: images of any size."""
    before = image_tensors.from_uint8(edits.before)
    return image_tensors.to_uint8(edit_any_size(sampler, before, edits.instructions, tasks, settings, seeds, options).images)
