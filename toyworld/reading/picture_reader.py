"""Pictures to readings: the look over the whole first, then what stands in it."""

import numpy as np

from toyworld.reading import object_search
from toyworld.reading.reading_records import Reading, Seen
from toyworld.reading.scene_classifier import LOOKS, recognise
from toyworld.scenes.palette import CELL_CENTRES, SIZE

_CHUNK = 64  # pictures at a time
_CLEAR_MARGIN = 0.06  # share of the gain by which a guess should beat its rivals
_CLEAR_GAIN = 2.0  # log odds a pixel of an object that is well explained
_CELL_PX = 8.0  # nearer to one cell than to the next by this: no doubt


def read(images: np.ndarray) -> list[Reading]:
    """Read uint8 `[N, 64, 64, 3]`: background, condition, style and up to three objects each, with confidences.

    Rendering is compared with what is seen, nothing is learned. The references are rendered at first use (some
    seconds a process); then a picture takes about 25 ms on one core.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images must be uint8 [N,{SIZE},{SIZE},3], got {images.dtype} {list(images.shape)}")
    found: list[Reading] = []
    for start in range(0, len(images), _CHUNK):
        pictures = images[start : start + _CHUNK].astype(np.float32) / 255
        overall = recognise(pictures)
        for picture, look, sure in zip(pictures, overall.look, overall.confidence, strict=True):
            found.append(_reading(picture, int(look), sure))
    return found


def _reading(picture: np.ndarray, look: int, sure: np.ndarray) -> Reading:
    trust = float(sure.min())
    seen = [_seen(tried, trust) for tried in object_search.find(picture, look)]
    background, condition, style = (int(v) for v in LOOKS[look])
    confidence = {name: float(v) for name, v in zip(("background", "condition", "style"), sure, strict=True)}
    confidence["count"] = trust * min((quality for _, quality in seen), default=1.0)
    return Reading(background, condition, style, tuple(one for one, _ in seen), confidence)


def _seen(tried: object_search.Tried, trust: float) -> tuple[Seen, float]:
    """The best guess, as sure of each attribute as it beats the best rival that differs in it; and how well it explains."""
    guesses, gain = tried
    quality = float(np.clip(gain[0] / (_CLEAR_GAIN * object_search.area(int(guesses.outline[0]))), 0, 1))
    sure = {}
    for name in ("kind", "colour", "texture", "variant", "big"):
        values = getattr(guesses, name)
        rivals = gain[values != values[0]]
        margin = (gain[0] - rivals.max()) / gain[0] if len(rivals) else np.inf
        sure[name] = trust * quality * float(1 - np.exp(-margin / _CLEAR_MARGIN))
    x, y = int(guesses.x[0]), int(guesses.y[0])
    away = np.hypot(*(CELL_CENTRES - np.array([x, y])).T)
    near, second = np.sort(away)[:2]
    sure["cell"] = trust * quality * float(min((second - near) / _CELL_PX, 1))
    kind, colour, texture, variant, radius = (
        int(getattr(guesses, n)[0]) for n in ("kind", "colour", "texture", "variant", "radius")
    )
    return Seen(kind, colour, texture, variant, int(away.argmin()), radius, x, y, sure), quality
