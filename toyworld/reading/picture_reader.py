"""Read scenes from images: first the background, weather and style, then the objects."""

import numpy as np

from toyworld.reading.object_search import ScoredHypotheses, find_objects, outline_area
from toyworld.reading.reading_records import Reading, SeenObject
from toyworld.reading.scene_classifier import classify_scenes
from toyworld.reading.scene_references import SCENE_CLASSES
from toyworld.scenes.palette import CELL_CENTRES, SIZE

_CHUNK = 64  # images at a time
# Scales of the confidences. They are ours, chosen by hand, and the confidences are not calibrated probabilities.
_MARGIN_SCALE = 0.06  # relative margin to the best hypothesis with another value at which confidence reaches 1 - 1/e
_FULL_EVIDENCE = 2.0  # log likelihood ratio per px of the object at which its fit counts as perfect
_CELL_MARGIN_PX = 8.0  # margin between the nearest and the second nearest cell at which the cell is certain


def read_scenes(images: np.ndarray) -> list[Reading]:
    """Read background, condition, style and up to three objects, with confidences, from uint8 `[N, 64, 64, 3]`.

    Images are compared with renders; nothing is learned. The reference renders are computed on first use (some seconds
    per process); after that an image takes about 25 ms on one core. Raises ValueError for another dtype or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images must be uint8 [N,{SIZE},{SIZE},3], got {images.dtype} {list(images.shape)}")
    readings: list[Reading] = []
    for start in range(0, len(images), _CHUNK):
        pictures = images[start : start + _CHUNK].astype(np.float32) / 255
        classes = classify_scenes(pictures)
        for picture, scene_class, confidence in zip(pictures, classes.scene_class, classes.confidence, strict=True):
            readings.append(_read_scene(picture, int(scene_class), confidence))
    return readings


def _read_scene(picture: np.ndarray, scene_class: int, class_confidence: np.ndarray) -> Reading:
    """Read the objects of an image, given its class and the confidence [3] in background, condition and style."""
    lowest = float(class_confidence.min())
    objects = [_read_object(scored, lowest) for scored in find_objects(picture, scene_class)]
    background, condition, style = (int(v) for v in SCENE_CLASSES[scene_class])
    confidence = {name: float(v) for name, v in zip(("background", "condition", "style"), class_confidence, strict=True)}
    confidence["count"] = lowest * min((fit for _, fit in objects), default=1.0)
    return Reading(background, condition, style, tuple(seen_object for seen_object, _ in objects), confidence)


def _read_object(scored: ScoredHypotheses, class_confidence: float) -> tuple[SeenObject, float]:
    """The object of the best hypothesis, and how well it fits in [0, 1].

    The confidence in an attribute grows with the margin to the best hypothesis with another value of this attribute.
    """
    hypotheses, score = scored
    fit = float(np.clip(score[0] / (_FULL_EVIDENCE * outline_area(int(hypotheses.outline[0]))), 0, 1))
    confidence = {}
    for name in ("kind", "colour", "texture", "variant", "big"):
        values = getattr(hypotheses, name)
        competing = score[values != values[0]]
        margin = (score[0] - competing.max()) / score[0] if len(competing) else np.inf
        confidence[name] = class_confidence * fit * float(1 - np.exp(-margin / _MARGIN_SCALE))
    x, y = int(hypotheses.x[0]), int(hypotheses.y[0])
    distances = np.hypot(*(CELL_CENTRES - np.array([x, y])).T)
    nearest, second_nearest = np.sort(distances)[:2]
    confidence["cell"] = class_confidence * fit * float(min((second_nearest - nearest) / _CELL_MARGIN_PX, 1))
    kind, colour, texture, variant, radius = (
        int(getattr(hypotheses, name)[0]) for name in ("kind", "colour", "texture", "variant", "radius")
    )
    return SeenObject(kind, colour, texture, variant, int(distances.argmin()), radius, x, y, confidence), fit
