"""A judge of edits of real images without reference results.

CLIP measures whether the edit was made, DINO whether the rest of the image was kept.

Per edit, with unit CLIP embeddings e of the image before and after and t of both captions (directional similarity:
StyleGAN-NADA, arXiv 2108.00946; CLIPdir of Emu Edit, arXiv 2311.10089):

    gain = (e_after - e_before) . (t_after - t_before) / |t_after - t_before|

An edit succeeds if its gain is at least `min_gain` and the DINO cosine of both images at least `min_dino` (tasks that edit a
part) or `min_dino_whole` (the whole image). For tasks whose captions do not describe the edit (boxes, maps, brightness), a
reference result is needed: the mean difference to it is at most `max_result_l1`, and at most `max_left` of the difference between
input and reference remains, since the input is near the reference of a thin box or a mild filter. The bounds depend on the
models: `calibrate_bounds` sets them from edits with reference results. Agreement with people is not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from emuedit import config
from emuedit.data.image_io import MIN_CHANGE, Pixels
from emuedit.models import image_tensors
from emuedit.models.clip import ClipScorer
from emuedit.models.dino import DinoScorer
from emuedit.tasks import get_task

Floats = npt.NDArray[np.float64]
MIN_CALIBRATED_GAIN = 0.01
"""Above the gain of an unchanged image, 0, and of rounding. Ours."""
MIN_MARGIN = 0.2
"""Of the accepted share of reference results over that of wrong ones. Ours."""
_Z = 1.645
"""Quantile of the standard normal distribution for a one-sided test at 5 %."""
_BATCH = 32
_NEVER = -2.0
"""Gain for equal captions, where it is undefined and only a reference result can be compared with."""


class JudgeBounds(config.Params):
    """Bounds of the judge. The defaults are unmeasured starting points for CLIP ViT-L/14 and DINO ViT-B: calibrate them."""

    min_gain: float = Field(0.05, gt=0, le=2)
    """Smallest CLIP gain of a successful edit; an unchanged image has the gain 0."""
    min_dino: float = Field(0.7, ge=-1, le=1)
    """Smallest DINO cosine between input and output of edits of a part of the image."""
    min_dino_whole: float = Field(0.3, ge=-1, le=1)
    """Smallest DINO cosine for edits of the whole image or its background."""
    max_result_l1: float = Field(0.1, ge=0, le=1)
    """Largest mean |difference| to a reference result, for values in [0, 1]."""
    max_left: float = Field(0.5, ge=0, le=1)
    """Largest remaining fraction of the difference between input and reference, see `ResultError.left`."""


@dataclass(frozen=True)
class ResultError:
    """Error of an output with respect to the reference result."""

    l1: float
    """Mean |difference|, for values in [0, 1]."""
    left: float
    """Remaining fraction of the difference between input and reference: 0 for the reference, 1 for the input.

    Over the pixels that differ by more than MIN_CHANGE, or over all pixels if these have less than half of the squared
    difference, as in a mild change of the whole image. Infinite if input and reference are equal."""

    @classmethod
    def of(cls, before: Pixels, after: Pixels, result: Pixels) -> ResultError:
        """Compute it for one output; all images are uint8 [H, W, 3]."""
        to_do = np.abs(np.subtract(before, result, dtype=np.int16))
        undone = np.abs(np.subtract(after, result, dtype=np.int16))
        differs = to_do.max(-1) > 255 * MIN_CHANGE
        squares = np.square(to_do, dtype=np.float64).sum(-1)
        if squares[differs].sum() < squares.sum() / 2:
            differs[:] = True
        total = int(to_do[differs].sum())
        return cls(float(undone.mean() / 255), int(undone[differs].sum()) / total if total else float("inf"))

    @property
    def is_defined(self) -> bool:
        """False if the reference result equals the input."""
        return self.left < float("inf")

    def objection(self, bounds: JudgeBounds) -> str:
        """Why the output is rejected; empty if it is accepted."""
        if not self.is_defined:
            return "the reference result equals the input: it cannot be judged"
        if self.l1 > bounds.max_result_l1:
            return f"L1 to the reference result {self.l1:.3f} above max_result_l1 {bounds.max_result_l1:g}"
        if self.left > bounds.max_left:
            return f"remaining difference to the reference result {self.left:.2f} above max_left {bounds.max_left:g}"
        return ""


@dataclass(frozen=True)
class Measures:
    """What is measured of N outputs."""

    gain: Floats
    """float64 [N], in [-2, 2]; _NEVER for equal captions."""
    dino: Floats
    """DINO cosines of input and output, float64 [N], in [-1, 1]; infinite where they are not compared."""
    errors: Sequence[ResultError | None]
    """None for an output without a reference result."""

    def rejection_reason(self, row: int, task: str, bounds: JudgeBounds) -> str:
        """Why an output is rejected; empty if it is accepted."""
        return _rejection_reason(task, bounds, float(self.gain[row]), float(self.dino[row]), self.errors[row])

    def rejection_reasons(self, task: str, bounds: JudgeBounds) -> tuple[str, ...]:
        """Why each output is rejected; empty if it is accepted."""
        return tuple(self.rejection_reason(row, task, bounds) for row in range(len(self.gain)))


@dataclass(frozen=True)
class JudgeResults:
    """The judge's verdicts on N outputs."""

    success: npt.NDArray[np.bool_]
    reason: tuple[str, ...]
    gain: Floats
    dino: Floats


@dataclass(frozen=True)
class Calibration:
    """Calibrated bounds, and the shares of edits that are accepted, in [0, 1], each by bounds fitted to the other edits."""

    task: str
    bounds: JudgeBounds
    """Fitted to all edits."""
    right: float
    """Accepted share of the reference results."""
    unrelated: float
    """Accepted share of other edits' reference results, judged by this edit's captions."""
    unchanged: float
    """Accepted share of unedited images."""
    n: int

    @property
    def separates(self) -> bool:
        """Whether more reference results than wrong and unchanged outputs are accepted.

        The share must exceed both others by MIN_MARGIN, and by 1.645 standard errors of the difference of two shares (one-sided
        test at 5 %): of few edits, MIN_MARGIN alone is exceeded by chance.
        """
        return all(self._exceeds(wrong) for wrong in (self.unrelated, self.unchanged))

    def _exceeds(self, wrong: float) -> bool:
        error = ((self.right * (1 - self.right) + wrong * (1 - wrong)) / self.n) ** 0.5
        return round(self.right - wrong, 9) >= max(MIN_MARGIN, _Z * error)

    @property
    def min_dino(self) -> float:
        """The DINO bound of the task."""
        return float(getattr(self.bounds, _dino_bound(self.task)))


class SimilarityJudge:
    """The judge with its two models."""

    def __init__(
        self, clip: ClipScorer, dino: DinoScorer, bounds: JudgeBounds, task_bounds: Mapping[str, JudgeBounds] | None = None
    ) -> None:
        """task_bounds: task -> bounds that replace `bounds`."""
        self.clip, self.dino, self.bounds, self.task_bounds = clip, dino, bounds, dict(task_bounds or {})

    def judge(
        self,
        task: str,
        before: Pixels,
        after: Pixels,
        captions: tuple[Sequence[str], Sequence[str]],
        results: Sequence[Pixels | None],
    ) -> JudgeResults:
        """Judge N outputs of one task, uint8 [N, H, W, 3]. captions: of the inputs and of the results.

        results: reference result of each, uint8 [H, W, 3], or None.
        """
        images, texts = self._embed_edits(before, after, captions)
        measures = Measures(project_gains(*images, *texts), self._cosines(before, after), _result_errors(before, after, results))
        reasons = measures.rejection_reasons(task, self.task_bounds.get(task, self.bounds))
        return JudgeResults(np.array([not reason for reason in reasons]), reasons, measures.gain, measures.dino)

    def calibrate(self, task: str, before: Pixels, exact: Pixels, captions: tuple[Sequence[str], Sequence[str]]) -> Calibration:
        """Calibrate bounds for one task from at least four edits with reference results, see `calibrate_bounds`.

        before, exact: inputs and reference results, uint8 [N, H, W, 3]. captions: of both. Raises ValueError for fewer edits.
        """
        n = len(before)
        if n < 4:
            raise ValueError(f"want at least four edits of {task} with reference results to calibrate from, got {n}")
        images, texts = self._embed_edits(before, exact, captions)
        shifted = [torch.roll(embeddings, 1, 0) for embeddings in images]  # pair each edit with the captions of another
        results = list(exact) if get_task(task).annotated else [None] * n

        def errors(after: Pixels) -> list[ResultError | None]:
            return _result_errors(before, after, results)

        return calibrate_bounds(
            task,
            self.bounds,
            right=Measures(project_gains(*images, *texts), self._cosines(before, exact), errors(exact)),
            unrelated=Measures(project_gains(*shifted, *texts), np.full(n, np.inf), errors(np.roll(exact, 1, 0))),
            unchanged=Measures(np.zeros(n), np.ones(n), errors(before)),
        )

    def _embed_edits(
        self, before: Pixels, after: Pixels, captions: tuple[Sequence[str], Sequence[str]]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Unit CLIP embeddings [N, D] of the images before and after, and of both captions."""
        images = [self._embed(self.clip, pictures) for pictures in (before, after)]
        return images, [self.clip.embed_texts(list(of_side)).cpu() for of_side in captions]

    def _cosines(self, before: Pixels, after: Pixels) -> Floats:
        return (self._embed(self.dino, before) * self._embed(self.dino, after)).sum(1).double().numpy()

    @staticmethod
    def _embed(scorer: ClipScorer | DinoScorer, pictures: Pixels) -> torch.Tensor:
        batches = (pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH))
        return torch.cat([scorer.embed_images(image_tensors.from_uint8(batch)).cpu() for batch in batches])


def calibrate_bounds(task: str, bounds: JudgeBounds, right: Measures, unrelated: Measures, unchanged: Measures) -> Calibration:
    """Calibrate bounds for one task from three outputs of each edit; the other fields of `bounds` stay.

    right: reference results. unrelated: reference results of other edits. unchanged: inputs. `min_gain`, at least
    MIN_CALIBRATED_GAIN, best separates reference results from wrong outputs (balanced accuracy): unrelated ones and one unchanged
    image, whose gain is 0 (with more of them, more of the others are accepted). `min_dino` is the 5 % quantile of the reference
    results. They apply to tasks judged by captions; annotated tasks are judged by their reference results.

    The accepted shares are cross-validated by leave-one-out (Stone 1974, J. R. Stat. Soc. B 36): each edit is judged by bounds
    that are fitted to the others. Check `Calibration.separates` before using the bounds.
    """
    n, accepted = len(right.gain), []
    for row in range(n):
        others = np.arange(n) != row
        of_others = _fit_bounds(task, bounds, right.gain[others], unrelated.gain[others], right.dino[others])
        accepted.append([not measures.rejection_reason(row, task, of_others) for measures in (right, unrelated, unchanged)])
    fitted = _fit_bounds(task, bounds, right.gain, unrelated.gain, right.dino)
    of_right, of_unrelated, of_unchanged = np.mean(accepted, axis=0).tolist()
    return Calibration(task, fitted, of_right, of_unrelated, of_unchanged, n)


def _fit_bounds(task: str, bounds: JudgeBounds, right: Floats, unrelated: Floats, dino: Floats) -> JudgeBounds:
    """The bounds of `calibrate_bounds`. right, unrelated: gains [N]; dino: cosines of the reference results [N]."""
    gain = max(best_threshold(right, np.append(unrelated, 0.0)), MIN_CALIBRATED_GAIN)
    return bounds.model_copy(update={"min_gain": gain, _dino_bound(task): float(np.quantile(dino, 0.05))})


def project_gains(before: torch.Tensor, after: torch.Tensor, text_before: torch.Tensor, text_after: torch.Tensor) -> Floats:
    """The gain of N edits (module docstring): unit embeddings [N, D] -> [N]; -2 if both captions are equal."""
    direction = text_after - text_before
    length = direction.norm(dim=1)
    gains = ((after - before) * direction).sum(1) / length.clamp(min=1e-6)
    return torch.where(length > 1e-4, gains, torch.full_like(gains, _NEVER)).double().numpy()


def best_threshold(right: Floats, wrong: Floats) -> float:
    """The threshold t with the best balanced accuracy (right >= t, wrong < t); the midpoint of its gap."""
    values = np.unique(np.concatenate([right, wrong]))
    middles = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    rejected, accepted = (np.searchsorted(np.sort(gains), middles) / len(gains) for gains in (right, wrong))
    return float(middles[int(np.argmax(accepted - rejected))])


def _result_errors(before: Pixels, after: Pixels, results: Sequence[Pixels | None]) -> list[ResultError | None]:
    """Errors of N outputs; None for those without a reference result."""
    return [
        None if result is None else ResultError.of(picture, output, result)
        for picture, output, result in zip(before, after, results, strict=True)
    ]


def _dino_bound(task: str) -> str:
    """The field of `JudgeBounds` with the DINO bound of a task."""
    return "min_dino" if get_task(task).region == "object" else "min_dino_whole"


def _rejection_reason(task: str, bounds: JudgeBounds, gain: float, cosine: float, error: ResultError | None) -> str:
    """Why an output is rejected; empty if it is accepted."""
    row = get_task(task)
    if gain == _NEVER or (row.annotated and error is not None):
        if error is None:
            return "CLIP cannot tell its captions apart and there is no reference result: it cannot be judged"
        return error.objection(bounds)
    floor = getattr(bounds, _dino_bound(task))
    objections = []
    if gain < bounds.min_gain:
        objections.append(f"CLIP gain {gain:.3f} below min_gain {bounds.min_gain:.3f}")
    if cosine < floor:
        objections.append(f"the rest of the image changed: DINO {cosine:.2f}, want {floor:.2f}")
    return "; ".join(objections)
