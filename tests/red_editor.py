"""An editor that changes red by an amount that depends on the task, and a task predictor that reads one word."""

import dataclasses
import threading
from collections.abc import Sequence

import torch

from emuedit.editor.sampling_options import NO_OPTIONS, Edited, SamplingOptions
from emuedit.editor.settings import EditSettings
from emuedit.predictor.task_predictor import TaskPrediction


@dataclasses.dataclass(frozen=True)
class SampleCall:
    """Arguments of one call of the sampler."""

    instruction: str
    task: str
    settings: EditSettings
    seed: int


class RedSampler:
    """Adds 0.5 to red for the task `local`, subtracts 0.25 for any other; records its calls."""

    tasks = ("local", "remove")
    resolution_px, grid_px, max_tokens = 1024, 8, 40
    fingerprint, dtype = "red", torch.float32
    inverted_tasks = ()

    def __init__(self) -> None:
        self.calls: list[SampleCall] = []
        self.lock = threading.RLock()

    def is_truncated(self, instruction: str) -> bool:
        return len(instruction.split()) > 40

    def sample(
        self,
        images: torch.Tensor,
        instructions: Sequence[str],
        tasks: Sequence[str],
        settings: EditSettings,
        seeds: Sequence[int],
        options: SamplingOptions = NO_OPTIONS,
    ) -> Edited:
        self.calls.append(SampleCall(instructions[0], tasks[0], settings, seeds[0]))
        for _ in range(settings.steps if options.report else 0):
            options.report(len(images))
        changed = images.clone()
        changed[:, 0] = (changed[:, 0] + (0.5 if tasks[0] == "local" else -0.25)).clamp(-1, 1)
        return Edited(changed, (None,) * len(images))


class WordPredictor:
    """`remove` is certain where the instruction says so; else `local`, with `second` close behind. Not the weather."""

    def __init__(self, second: str = "remove") -> None:
        self.second = second

    def predict(self, texts: Sequence[str], among: Sequence[str] | None = None) -> list[TaskPrediction]:
        return [
            TaskPrediction("remove", 0.9, (("local", 0.05),))
            if "remove" in text
            else TaskPrediction("local", 0.5, ((self.second, 0.4),), refused="weather" in text)
            for text in texts
        ]
