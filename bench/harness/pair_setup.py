"""Common parts of the compared generation methods: models, params, stopwatch, and candidates.

The source is the image that is generated first; for reversed instructions it is the pair's target.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from emuedit.data.records import Instruction
from emuedit.stages.pairs import PairsParams
from emuedit.synthesis import batching, masks
from emuedit.synthesis.methods.prompt_to_prompt import PromptToPrompt
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.sampler import Sampler

STABLE_DIFFUSION_GUIDANCE = 7.5
"""The guidance scale of the papers' values, which are scaled here by pairs.guidance_scale / 7.5."""


@dataclass(frozen=True)
class GeneratedPair:
    """An unscored candidate. Images are float32 [3, H, W] in [-1, 1]."""

    instruction: Instruction
    candidate: int
    source: Tensor  # of the pair, before the edit
    target: Tensor
    object_area: float = 0.0  # share of the image that the object covers


class Stopwatch:
    """CPU seconds and wall seconds by method, round and part of the work (sources, masks, edits, filters)."""

    def __init__(self) -> None:
        self.cpu_s: defaultdict[tuple[str, int, str], float] = defaultdict(float)
        self.wall_s: defaultdict[tuple[str, int, str], float] = defaultdict(float)

    @contextmanager
    def measure(self, method: str, round_number: int, part: str) -> Iterator[None]:
        """Context manager that adds the time of its block."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu_s[method, round_number, part] += time.process_time() - cpu
        self.wall_s[method, round_number, part] += time.perf_counter() - wall

    def totals(self, method: str, rounds: float) -> tuple[dict[str, float], float]:
        """(CPU seconds by part, total wall seconds) of the first `rounds` rounds of a method."""
        counted = [key for key in self.cpu_s if key[0] == method and key[1] < rounds]
        cpu_s: defaultdict[str, float] = defaultdict(float)
        for key in counted:
            cpu_s[key[2]] += self.cpu_s[key]
        return dict(cpu_s), sum(self.wall_s[key] for key in counted)


@dataclass(frozen=True)
class Setup:
    """Common models and params of the stage `pairs`."""

    models: ModelSet
    params: PairsParams

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler of soft-mask control."""
        dtype, interval = self.models.runtime.torch_dtype, self.params.guidance_interval
        return Sampler(self.models.base_model, self.params.steps, dtype, interval)

    @cached_property
    def prompt_to_prompt(self) -> PromptToPrompt:
        """Prompt-to-Prompt with the same settings."""
        return PromptToPrompt(self.sampler)

    @property
    def guidance_factor(self) -> float:
        """Factor of guidance scales given for Stable Diffusion."""
        return self.params.guidance_scale / STABLE_DIFFUSION_GUIDANCE

    def locate(self, pictures: Tensor, phrases: Sequence[tuple[int, tuple[str, ...]]]) -> list[Tensor | None]:
        """The precise mask, bool [H, W], of each (row of an image, phrases); None if none is accepted."""
        queries = sorted({(row, phrase) for row, row_phrases in phrases for phrase in row_phrases})
        limits, batch = self.params.detection_limits, self.params.rows_per_batch
        located = masks.locate_objects(self.models.detector, self.models.segmenter, pictures, queries, limits, batch)
        unions = [
            masks.union_mask([located[row, phrase] for phrase in row_phrases], pictures[0, 0], limits)
            for row, row_phrases in phrases
        ]
        return [P if isinstance(P, Tensor) else None for P in unions]

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> images float32 [N, 3, H, W] on the CPU."""
        return batching.decode_in_batches(self.models.base_model, z, self.params.rows_per_batch)


def object_phrases(instruction: Instruction) -> tuple[str, ...]:
    """Phrases to locate in the source."""
    return masks.split_phrases(instruction.target_object if instruction.reverse else instruction.source_object)
