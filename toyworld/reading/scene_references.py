"""Mean and covariance of the statistics of rendered references, used to classify the scene of an image.

They are loaded from a file, because rendering the references takes ten seconds per process.
`toyworld.training.fit_scene_references` writes the file.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from toyworld.scenes.palette import BACKGROUNDS, CONDITIONS, STYLES

SCENE_CLASSES = np.array(
    [(b, c, 0) for b in range(len(BACKGROUNDS)) for c in range(len(CONDITIONS))]
    + [(b, 0, s) for b in range(len(BACKGROUNDS)) for s in range(1, len(STYLES))],
    np.int16,
)
"""[80, 3] all occurring (background, condition, style): only photos have weather."""

FILE = Path(__file__).with_suffix(".safetensors")


@dataclass(frozen=True)
class SceneReferences:
    """Statistics of the references, float64. F is the number of statistics of an image."""

    mean: np.ndarray  # [80, F] whitened mean of each of SCENE_CLASSES
    whitening: np.ndarray  # [F, F] statistics @ whitening have about unit covariance within classes
    typical_max: np.ndarray  # [] 0.995 quantile of the squared distances of references from the mean of their class


@lru_cache(maxsize=1)
def load() -> SceneReferences:
    """The statistics in the file."""
    return SceneReferences(**load_file(FILE))
