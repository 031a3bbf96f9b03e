"""Classify background, condition and style of a whole image by the nearest class mean of rendered references.

An image becomes a vector of statistics. Rendered references give the mean of every class and the covariance within classes,
pooled over all classes. The distance is Mahalanobis's (1936), so that no parameters are fitted except means and one covariance.
"""

from dataclasses import dataclass

import numpy as np

from toyworld.reading import scene_references
from toyworld.reading.scene_references import SCENE_CLASSES
from toyworld.reading.scene_statistics import image_statistics

_TEMPERATURE = 6.0  # divides squared distances: the statistics are not Gaussian, so that the posterior is too sharp


@dataclass(frozen=True)
class SceneClassification:
    """Classes of N images."""

    scene_class: np.ndarray  # [N] row of SCENE_CLASSES
    confidence: np.ndarray  # [N, 3] in [0, 1], in background, condition, style


def classify_scenes(pictures: np.ndarray) -> SceneClassification:
    """The nearest class of each of the images `[N, 64, 64, 3]`, float32 in [0, 1].

    The confidence is the posterior probability, summed over the classes that share the value, times a factor that decays
    exponentially if an image is farther from its class than the references.
    """
    references = scene_references.load()
    rows = image_statistics(pictures) @ references.whitening
    distance = ((rows[:, None] - references.mean[None]) ** 2).sum(-1)  # [N, 80]
    nearest = distance.argmin(1)
    posterior = np.exp(-0.5 * (distance - distance.min(1, keepdims=True)) / _TEMPERATURE)
    posterior /= posterior.sum(1, keepdims=True)
    same_value = SCENE_CLASSES[nearest][:, None] == SCENE_CLASSES[None]  # [N, 80, 3]
    excess = np.maximum(distance.min(1) / references.typical_max - 1, 0)  # 0: within the range of the references
    confidence = np.clip((posterior[..., None] * same_value).sum(1), 0, 1) * np.exp(-excess)[:, None]
    return SceneClassification(nearest, confidence)
