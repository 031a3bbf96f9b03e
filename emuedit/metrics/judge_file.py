"""The settings of the judge of a folder of real images, `judge.yaml`."""

from pydantic import Field

from emuedit import config
from emuedit.metrics.similarity_judge import JudgeBounds

CALIBRATED_BOUNDS = ("min_gain", "min_dino", "min_dino_whole")
"""The bounds that a calibration measures; the others, of comparisons with a reference result, are set by hand."""


class JudgeFile(config.Params):
    """Contents of `judge.yaml`."""

    clip: str
    """open_clip model: folder, 'model/tag' or hub id."""
    dino: str
    """DINO vision transformer: folder or hub id."""
    size: int = Field(512, ge=16)
    """Side in px to which images are cropped and scaled."""
    bounds: JudgeBounds = JudgeBounds()
    """Bounds of tasks without their own entry."""
    task_bounds: dict[str, JudgeBounds] = Field(default={})
    """Task -> bounds."""
    measured: dict[str, dict[str, float]] = Field(default={})
    """Task -> its CALIBRATED_BOUNDS, as `emuedit benchmark --calibrate` measured them. A bound set by hand differs from them."""

    def bounds_of(self, task: str) -> JudgeBounds:
        """The bounds of a task."""
        return self.task_bounds.get(task, self.bounds)


def calibrated_bounds(bounds: JudgeBounds) -> dict[str, float]:
    """The CALIBRATED_BOUNDS among the bounds of a task."""
    return {name: getattr(bounds, name) for name in CALIBRATED_BOUNDS}
