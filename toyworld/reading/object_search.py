"""Find up to three objects in an image: propose regions that the background does not explain, then refine hypotheses.

The search is greedy: one object after the other, by the largest log likelihood ratio against the background.
"""

import numpy as np
from scipy.ndimage import maximum_filter

from toyworld.reading.object_hypotheses import (
    MARGIN,
    N_OUTLINES,
    SIDE,
    Hypotheses,
    PaddedPicture,
    allowed_textures,
    broadcast_hypotheses,
    concat_hypotheses,
    log_likelihood_ratios,
)
from toyworld.reading.object_proposals import colour_log_ratios, propose
from toyworld.reading.scene_references import SCENE_CLASSES
from toyworld.reading.weather_removal import PENCIL, background_colour, fit_inverse, log_background_density
from toyworld.scenes import stamps
from toyworld.scenes.palette import CARD, COLOURS, LETTERS, RADII
from toyworld.scenes.scene import SLOTS

# All thresholds are log likelihood ratios, chosen by hand on held-out scenes 0..399.
_MAX_PROPOSALS = 5
_MIN_PROPOSAL_SCORE = 40.0
_PENCIL_ALLOWANCE = 300.0  # lowers the minimum for pencil sketches, whose lines lower the score of true objects
_N_KEPT = 5  # outlines kept after each refinement step
_MIN_SCORE = 100.0
_MIN_SCORE_PER_PX = 0.5
_OCCUPIED = 6.0  # log background density of pixels that belong to a found object: covering them again lowers the score
_OCCUPIED_RATIO = -3.0  # log likelihood ratio of these pixels in later proposals

ScoredHypotheses = tuple[Hypotheses, np.ndarray]
"""All hypotheses that were scored for one object, best first, and their log likelihood ratios `[H]`."""


def find_objects(picture: np.ndarray, scene_class: int) -> list[ScoredHypotheses]:
    """The objects in an image `[64, 64, 3]`, float32 in [0, 1], given its scene class; at most three."""
    style = int(SCENE_CLASSES[scene_class, 2])
    inverse = fit_inverse(scene_class)
    clean = inverse.apply(picture[None])[0]
    log_background = log_background_density(inverse, clean)
    log_ratios = colour_log_ratios(clean, scene_class, log_background)
    pad = ((MARGIN, MARGIN), (MARGIN, MARGIN))
    padded = PaddedPicture(
        colours=np.pad(clean, (*pad, (0, 0)), constant_values=-9.0).reshape(-1, 3),
        log_background=np.pad(log_background, pad, constant_values=3.0).ravel(),
        background_rgb=background_colour(scene_class),
        sigma=inverse.sigma.astype(np.float32),
        style=style,
    )
    inner = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    objects: list[ScoredHypotheses] = []
    for _ in range(_MAX_PROPOSALS):
        proposals, proposal_score = propose(log_ratios, style)
        if proposal_score < _MIN_PROPOSAL_SCORE - _PENCIL_ALLOWANCE * (style == PENCIL):
            break
        hypotheses, score = _refine(padded, proposals)
        outline, x, y = int(hypotheses.outline[0]), int(hypotheses.x[0]), int(hypotheses.y[0])
        covered = _covered_pixels(outline, x, y)
        around = maximum_filter(covered, 3)[inner]
        log_ratios[:, around] = np.minimum(log_ratios[:, around], 0)  # do not propose this region again
        if score[0] < max(_MIN_SCORE, _MIN_SCORE_PER_PX * outline_area(outline)):
            continue
        objects.append((hypotheses, score))
        if len(objects) == SLOTS:
            break
        padded.log_background[covered.ravel()] = _OCCUPIED
        log_ratios[:, covered[inner]] = _OCCUPIED_RATIO
    return objects


def _refine(picture: PaddedPicture, proposals: Hypotheses) -> ScoredHypotheses:
    """Score variations of the proposals: first outlines and textures, then positions, then all attributes."""
    hypotheses = _vary_texture(_vary_radius_and_letter(proposals), picture.style)
    score = log_likelihood_ratios(picture, hypotheses, stride=6)
    for stride in (3, 3):
        hypotheses = _vary_position(_best_per_outline(hypotheses, score))
        score = log_likelihood_ratios(picture, hypotheses, stride)
    hypotheses = _vary_all(_best_per_outline(hypotheses, score), picture.style)
    hypotheses = _vary_position(_best_per_outline(hypotheses, log_likelihood_ratios(picture, hypotheses, stride=2)))
    hypotheses = _vary_all(_best_per_outline(hypotheses, log_likelihood_ratios(picture, hypotheses, stride=2)), picture.style)
    score = log_likelihood_ratios(picture, hypotheses)
    order = np.argsort(-score, kind="stable")
    return hypotheses[order], score[order]


def _vary_radius_and_letter(start: Hypotheses) -> Hypotheses:
    """Each hypothesis at both radii of its size, and each card with every letter."""
    stamp, radius = start.stamp, start.outline % len(RADII)
    rows = np.repeat(np.arange(len(start)), np.where(stamp == CARD, len(LETTERS), 1))
    first = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1])
    letter = np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))  # 0 for all but cards
    outline = (stamp[rows] + letter) * len(RADII) + radius[rows]
    both_radii = np.stack([outline, outline ^ 1], 1)
    colour, x, y = (a[rows][:, None] for a in (start.colour, start.x, start.y))
    return broadcast_hypotheses(both_radii, colour, np.zeros(1), x, y)


def _vary_texture(start: Hypotheses, style: int) -> Hypotheses:
    """Each hypothesis in all textures that its outline allows."""
    row, texture = np.nonzero(allowed_textures(style)[start.outline])
    return broadcast_hypotheses(start.outline[row], start.colour[row], texture, start.x[row], start.y[row])


def _vary_position(start: Hypotheses) -> Hypotheses:
    """Each hypothesis at its position and at the eight neighbours of it."""
    dy, dx = (a.ravel()[None] - 1 for a in np.indices((3, 3)))
    outline, colour, texture, x, y = (a[:, None] for a in (start.outline, start.colour, start.texture, start.x, start.y))
    return broadcast_hypotheses(outline, colour, texture, x + dx, y + dy)


def _vary_all(start: Hypotheses, style: int) -> Hypotheses:
    """The hypotheses in all textures; the first also with all other stamps, radii, colours and textures.

    These are varied one at a time, not in combination (except colours with textures).
    """
    best = start[:1]
    radius = best.outline % len(RADII)
    other_stamps = (np.arange(stamps.N_STAMPS) * len(RADII) + radius)[:, None] ^ np.array([0, 1])
    outline = np.concatenate([other_stamps.ravel(), best.stamp * len(RADII) + np.arange(len(RADII))])
    allowed = allowed_textures(style)
    texture = np.where(allowed[outline, best.texture], best.texture, 0)
    outlines = broadcast_hypotheses(outline, best.colour, texture, best.x, best.y)[allowed[outline, texture]]
    colours = broadcast_hypotheses(best.outline, np.arange(len(COLOURS)), np.zeros(1), best.x, best.y)
    return concat_hypotheses([_vary_texture(start, style), outlines, _vary_texture(colours, style)])


def _best_per_outline(hypotheses: Hypotheses, score: np.ndarray) -> Hypotheses:
    """The best hypothesis of each of the `_N_KEPT` best outlines."""
    order = np.argsort(-score, kind="stable")
    _, first = np.unique(hypotheses.outline[order], return_index=True)
    return hypotheses[order[np.sort(first)[:_N_KEPT]]]


def outline_area(outline: int) -> float:
    """Area of an outline, px^2."""
    return float(stamps.atlas().alpha.reshape(N_OUTLINES, -1)[outline].sum())


def _covered_pixels(outline: int, x: int, y: int) -> np.ndarray:
    """bool [SIDE, SIDE]: the pixels of a padded image that an outline covers at least in part."""
    alpha = stamps.atlas().alpha.reshape(N_OUTLINES, stamps.WINDOW, stamps.WINDOW)[outline]
    covered = np.zeros((SIDE, SIDE), bool)
    top, left = y + MARGIN - stamps.HALF, x + MARGIN - stamps.HALF
    covered[top : top + stamps.WINDOW, left : left + stamps.WINDOW] = alpha > 0.05
    return covered
