"""Sample edits during training: a contact sheet and the success rate.

`train.preview.function` names this file. A preview does not affect training, so this file is not a dependency of the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emuedit.data.image_io import Pixels
from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.metrics import benchmark, report
from emuedit.metrics.edit_scores import evaluate_system
from emuedit.metrics.photo_benchmark import PhotoBenchmark
from emuedit.metrics.systems import make_edits

NAME = "editor"


class TrainingPreview:
    """Edits the same examples at every call; they are from the benchmark's split `train`, which evaluation does not use."""

    def __init__(
        self, source: str, tasks: Sequence[str], n_edits: int, settings: EditSettings, folder: Path, device: str = "auto"
    ) -> None:
        """`source` is the benchmark's file; images go to `folder`; `device` is that of the judge's models.

        Raises what the benchmark raises for a missing task."""
        self.source = benchmark.load(source, device)
        self.edits = [self.source(task, "train", 0, n_edits) for task in tasks]
        self.settings, self.folder = settings, folder

    def check(self) -> None:
        """Load the judge's models and free them, so that a missing one is an error before the training. Raises its error."""
        if isinstance(self.source, PhotoBenchmark):
            _ = self.source.similarity_judge
            self._free_judge()

    def _free_judge(self) -> None:
        """Free the judge's models of a folder of images: the training needs the memory."""
        if isinstance(self.source, PhotoBenchmark):
            self.source.free_judge()

    def __call__(self, sampler: EditSampler, step: int) -> dict[str, float]:
        """Edit, write `preview-<step>.png`, and return the success per task and its mean."""

        def edit(edits: benchmark.Benchmark, seeds: list[int]) -> tuple[Pixels, list[str]]:
            tasks = [edits.task] * len(seeds)
            return make_edits(sampler, edits, tasks, self.settings, seeds), tasks

        try:
            records = [record for edits in self.edits for record in evaluate_system(NAME, edit, edits, None, self.settings.seed)]
        finally:
            self._free_judge()
        tasks = [edits.task for edits in self.edits]
        success = report.summarise(records, tasks)["edit_success"]
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet = report.draw_contact_sheet(records, NAME, tasks, len(records) // len(tasks), success)
        sheet.save(self.folder / f"preview-{step:06d}.png", optimize=True)
        return {f"success.{task}": share for task, share in success[NAME].items() if share is not None}


preview = TrainingPreview
"""What `train.preview.function` calls: before pairs are encoded, and before training in each process that shows the preview."""
