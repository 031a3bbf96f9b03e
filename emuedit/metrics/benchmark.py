"""Edits whose results are known, and the judge of an editor's answers. A world brings its own, by name in `params.yaml`.

Shapes: N edits of one task; pictures are uint8 [N, H, W, 3].
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from emuedit import config

Pictures = npt.NDArray[np.uint8]


class Success(Protocol):
    """What the judge said of N outputs."""

    @property
    def success(self) -> npt.NDArray[np.bool_]:
        """bool [N]."""
        ...

    @property
    def reason(self) -> tuple[str, ...]:
        """Why not, N texts; empty where it succeeded."""
        ...


class Benchmark(Protocol):
    """N edits of one task."""

    @property
    def task(self) -> str:
        """Which of the tasks, trained or held out."""
        ...

    @property
    def instructions(self) -> list[str]:
        """What the editor is told."""
        ...

    @property
    def input_captions(self) -> list[str]:
        """What the pictures show before."""
        ...

    @property
    def output_captions(self) -> list[str]:
        """What they show afterwards."""
        ...

    @property
    def before(self) -> Pictures:
        """The pictures to edit."""
        ...

    @property
    def exact(self) -> Pictures:
        """The right results."""
        ...

    def judge(self, output: Pictures) -> Success:
        """Which of the editor's outputs succeed."""
        ...


class Source(Protocol):
    """The function `edits` that a benchmark file brings."""

    def __call__(self, task: str, split: str, start: int, n: int) -> Benchmark:
        """The edits start .. start + n of a task in a split, 'train' or 'held_out'; the same arguments give the same edits."""
        ...


def load(reference: str) -> Source:
    """The edits of a benchmark file such as `toyworld/edits/toy_benchmark.py`. Raises ParamsError where there is none."""
    source: Source = config.import_function(reference, "edits")
    return source
