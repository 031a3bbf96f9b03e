"""Did an edit succeed? Against the exact result, which the renderer knows for every edit of the toy world."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

BOUND = 0.06
"""Most mean L1 outside of the region, in [0, 1]: the toy VAE alone costs 0.01 to 0.05, a background drawn anew about 0.1."""
LEAST_OUTSIDE = 1024
"""Fewer pixels outside count as this many (a quarter of a picture): rims alone are what every decoder blurs."""
LOCAL_BOUND = 0.16
"""Most mean L1 in any window of 8x8 px outside of the region: an object lost or recoloured elsewhere is small, but not there."""
WINDOW_PX = 8
NOTICEABLE = 0.06
"""Pixels whose mean L1 differs by more than this must change."""
EXACT, INPUT = 0, 1
"""Values of `Judgement.nearest`; `2 + k` is alternative k."""


@dataclass(frozen=True)
class Judgement:
    """Of N edits."""

    success: np.ndarray  # bool [N]
    nearest: np.ndarray  # int64 [N]: EXACT, INPUT, or 2 + row of the alternatives, inside the region
    inside_error: np.ndarray  # float32 [N], mean L1 to the exact result inside the region, in [0, 1]
    outside_error: np.ndarray  # float32 [N], likewise outside, 0 if there is no outside
    worst_window: np.ndarray  # float32 [N], likewise in the worst window outside
    reason: tuple[str, ...]  # why not; empty on success


def must_change(before: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """bool [N, 64, 64]: where uint8 `[N, 64, 64, 3]` differ noticeably."""
    return l1(before, exact) > NOTICEABLE


def judge(
    output: np.ndarray,
    before: np.ndarray,
    exact: np.ndarray,
    alternatives: Sequence[np.ndarray] | np.ndarray,
    region: np.ndarray | None = None,
    bound: float = BOUND,
    local_bound: float = LOCAL_BOUND,
) -> Judgement:
    """Judge outputs of edits, all pictures uint8 `[N, 64, 64, 3]`.

    An edit succeeds when, inside the region, the output is strictly nearer (mean L1) to the exact result than to the input
    and to each alternative, and outside of it the mean L1 to the exact result stays within `bound`, and within
    `local_bound` in every window of `WINDOW_PX`.
    `alternatives[n]` is uint8 `[K_n, 64, 64, 3]`: the same edit with the other values of the edited attribute.
    `region` is bool `[N, 64, 64]`, by default `must_change(before, exact)`.
    """
    for name, pictures in (("output", output), ("before", before), ("exact", exact)):
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape != exact.shape:
            raise ValueError(f"{name} must be uint8 {list(exact.shape)} as exact is, got {pictures.dtype} {list(pictures.shape)}")
    if len(alternatives) != len(exact):
        raise ValueError(f"alternatives must be one array an edit, want {len(exact)}, got {len(alternatives)}")
    if region is None:
        region = must_change(before, exact)
    if region.dtype != bool or region.shape != exact.shape[:3]:
        raise ValueError(f"region must be bool {list(exact.shape[:3])}, got {region.dtype} {list(region.shape)}")
    empty = np.flatnonzero(~region.any((1, 2)))
    if len(empty):
        raise ValueError(f"nothing must change in edits {empty.tolist()}: the region is empty; leave such edits out")
    inside_error = mean_over(l1(output, exact), region)
    outside_error = mean_over(l1(output, exact), ~region, LEAST_OUTSIDE)
    damage = uniform_filter(l1(output, exact) * ~region, (0, WINDOW_PX, WINDOW_PX), mode="constant")
    worst_window = damage.max((1, 2)).astype(np.float32)
    nearest = np.array(
        [_nearest(output[n], before[n], exact[n], alternatives[n], region[n], n) for n in range(len(exact))], np.int64
    )
    success = (nearest == EXACT) & (outside_error <= bound) & (worst_window <= local_bound)
    reason = tuple(
        _reason(int(k), float(e), bound, float(w), local_bound)
        for k, e, w in zip(nearest, outside_error, worst_window, strict=True)
    )
    return Judgement(success, nearest, inside_error, outside_error, worst_window, reason)


def l1(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over channels of the absolute difference of uint8 `[..., 3]`, in [0, 1]."""
    return np.abs(a.astype(np.float32) - b.astype(np.float32)).mean(-1) / 255


def mean_over(error: np.ndarray, where: np.ndarray, least: int = 1) -> np.ndarray:
    """float32 [N]: mean of `[N, 64, 64]` where bool `where` is true; fewer pixels than `least` count as that many."""
    return ((error * where).sum((1, 2)) / np.maximum(where.sum((1, 2)), least)).astype(np.float32)


def _nearest(output: np.ndarray, before: np.ndarray, exact: np.ndarray, others: np.ndarray, region: np.ndarray, n: int) -> int:
    candidates = np.concatenate([exact[None], before[None], others]) if len(others) else np.stack([exact, before])
    inside = candidates[:, region]  # [2 + K, P, 3]
    same = np.flatnonzero((inside[1:] == inside[0]).all((1, 2))) + 1
    if len(same):
        which = "the input" if same[0] == INPUT else f"alternative {same[0] - 2}"
        raise ValueError(f"{which} of edit {n} equals the exact result inside the region; give only other values")
    error = l1(inside, output[region][None]).mean(1)
    order = np.argsort(error, kind="stable")
    tied = order[0] == EXACT and error[order[1]] == error[EXACT]
    return int(order[1] if tied else order[0])


def _reason(nearest: int, outside_error: float, bound: float, worst_window: float, local_bound: float) -> str:
    said = []
    if nearest == INPUT:
        said.append("inside the region the output is nearest to the input: nothing was done")
    elif nearest != EXACT:
        said.append(f"inside the region the output is nearest to alternative {nearest - 2}")
    if outside_error > bound:
        said.append(f"outside of the region the mean L1 is {outside_error:.3f}, over {bound:.3f}")
    if worst_window > local_bound:
        said.append(f"in a window outside of the region the mean L1 is {worst_window:.3f}, over {local_bound:.3f}")
    return "; ".join(said)
