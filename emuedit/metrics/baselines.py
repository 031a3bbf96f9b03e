"""The systems that evaluation compares, each behind one call: edits and seeds in, outputs and the tasks that were used out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from emuedit import config
from emuedit.editor import sampling, task_predictor
from emuedit.editor.sampling import EditSampler, ReportStep
from emuedit.editor.settings import EditSettings
from emuedit.editor.task_predictor import TaskPredictor
from emuedit.metrics.benchmark import Benchmark, Pictures
from emuedit.models import image_tensors
from emuedit.runtime import Runtime

System = Callable[[Benchmark, list[int]], tuple[Pictures, list[str]]]
"""Edits and their seeds -> outputs uint8 [N, H, W, 3] and the task that was used for each."""


class Systems:
    """Every system by its name; models are loaded when a system first needs them."""

    def __init__(self, root: Path, settings: EditSettings, runtime: Runtime, report: ReportStep | None = None) -> None:
        self.root, self.settings, self.runtime, self._report = root, settings, runtime, report

    def __getitem__(self, name: str) -> System:
        systems: dict[str, System] = {
            "identity": self.identity, "emuedit": self.emuedit, "true_task": self.true_task,
        }  # fmt: skip
        if name not in systems:
            raise config.ParamsError(f"want systems out of {', '.join(systems)}; got {name!r}")
        return systems[name]

    def identity(self, edits: Benchmark, seeds: list[int]) -> tuple[Pictures, list[str]]:
        """Returns the input; it is right about everything that must not change."""
        return edits.before, [edits.task] * len(seeds)

    def emuedit(self, edits: Benchmark, seeds: list[int]) -> tuple[Pictures, list[str]]:
        """The editor with the predicted task; an inverted task is given, because the predictor does not know it."""
        if edits.task in self.editor.inverted_tasks:
            return self.true_task(edits, seeds)
        return self._edit(edits, [prediction.task for prediction in self.predictor.predict(edits.instructions)], seeds)

    def true_task(self, edits: Benchmark, seeds: list[int]) -> tuple[Pictures, list[str]]:
        """The editor with the true task."""
        return self._edit(edits, [edits.task] * len(seeds), seeds)

    @cached_property
    def editor(self) -> EditSampler:
        """The editor under test, with the tasks that inversion added."""
        editor = sampling.load(self.root / "models/editor", self.runtime)
        for pack in sorted((self.root / "models/inversion").glob("*.safetensors")):
            editor.add_pack(pack)
        return editor

    @cached_property
    def predictor(self) -> TaskPredictor:
        """Predicts the tasks of instructions."""
        return task_predictor.load(str(self.root / "models/router"), self.runtime.device)

    def _edit(self, edits: Benchmark, tasks: list[str], seeds: list[int]) -> tuple[Pictures, list[str]]:
        before = image_tensors.from_uint8(edits.before)
        after = self.editor.sample(before, edits.instructions, tasks, self.settings, seeds, self._report)
        return image_tensors.to_uint8(after), tasks
