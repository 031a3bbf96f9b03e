"""Apply the filters of `params.yaml` to candidates of any method, and the oracle to those that pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emuedit.core import similarity
from emuedit.data.filters import ScoreBounds
from emuedit.data.png import encode_png
from emuedit.data.records import Pair
from emuedit.models.image_tensors import to_uint8
from emuedit.stages.dataset import DatasetParams
from emuedit.synthesis import masks, pair_scores
from emuedit.synthesis.pair_scores import ScoredEdit
from emuedit.synthesis.recipes import recipes_for
from harness.pair_setup import GeneratedPair, Setup, Stopwatch, object_phrases
from toyworld.oracle import pair_judge

DETECTOR_SCORES = ("source_object_after", "target_object_after", "source_object_before")
KNOWN_SCORES = {"clip_direction", "l1_outside", "object_left_in_mask", *DETECTOR_SCORES}


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate with the decision of the filters and, if it passed, of the oracle."""

    pair: GeneratedPair
    direction: float  # CLIP direction
    passed: bool
    right: bool = False
    right_inside: bool = False  # correct except for changed pixels outside the mask


class CandidateScorer:
    """Applies the filters of `params.yaml` that are defined for all methods, and the oracle to candidates that pass.

    The filter `l1_outside` and the oracle's bound outside the mask use the widest soft mask of the task, on each method's image.
    Their time is not counted, so that methods without masks are not charged for masks.
    """

    def __init__(self, setup: Setup, filters: DatasetParams) -> None:
        self.setup, self.filters = setup, filters
        self._batch = setup.params.rows_per_batch
        self._precise: dict[tuple[bytes, tuple[str, ...]], Tensor | None] = {}  # source's bytes, phrases -> P

    def score(self, name: str, round_number: int, pairs: Sequence[GeneratedPair], stopwatch: Stopwatch) -> list[ScoredCandidate]:
        """Score the candidates of one round of a method. The stopwatch counts CLIP and the detector as `filters`."""
        if not pairs:
            return []
        bounds = [self.filters.filters_for(pair.instruction.task) for pair in pairs]
        if unknown := {score for row in bounds for score in row} - KNOWN_SCORES:
            raise ValueError(
                f"want filters on {', '.join(sorted(KNOWN_SCORES))}, got {', '.join(sorted(unknown))}; add them here"
            )
        with stopwatch.measure(name, round_number, "filters"):
            direction = self._clip_direction(pairs)
            passed = [is_within(value, row.get("clip_direction", {})) for value, row in zip(direction, bounds, strict=True)]
            for score in DETECTOR_SCORES:
                rows = [n for n, row in enumerate(bounds) if passed[n] and score in row]
                for n, value in zip(rows, self._presence([pairs[n] for n in rows], score), strict=True):
                    passed[n] = is_within(value, bounds[n][score])
        M = self._widest_masks(pairs)
        for n, pair in enumerate(pairs):
            passed[n] = passed[n] and is_within(l1_outside(pair, M[n]), bounds[n].get("l1_outside", {}))
        rows = [n for n, row in enumerate(bounds) if passed[n] and "object_left_in_mask" in row]
        with stopwatch.measure(name, round_number, "filters"):
            lefts = self._left_inside([(pairs[n], M[n]) for n in rows])
        for n, left in zip(rows, lefts, strict=True):
            passed[n] = is_within(left, bounds[n]["object_left_in_mask"])
        candidates = []
        for pair, value, faults in zip(pairs, direction, find_faults(pairs, M, passed), strict=True):
            if faults is None:
                candidates.append(ScoredCandidate(pair, value, passed=False))
            else:
                right_inside = faults <= {"rest_outside"}
                candidates.append(ScoredCandidate(pair, value, passed=True, right=not faults, right_inside=right_inside))
        return candidates

    def _clip_direction(self, pairs: Sequence[GeneratedPair]) -> list[float]:
        """CLIP direction of N pairs. Identical image objects and equal captions are embedded once."""
        clip = self.setup.models.scorers.clip
        pictures = {id(picture): picture for pair in pairs for picture in (pair.source, pair.target)}
        stack = torch.stack(list(pictures.values()))
        image_vectors = torch.cat([clip.embed_images(part) for part in stack.split(self._batch)])
        captions = sorted({text for pair in pairs for text in _captions(pair)})
        starts = range(0, len(captions), self._batch)
        text_vectors = torch.cat([clip.embed_texts(captions[start : start + self._batch]) for start in starts])
        picture_row = {key: row for row, key in enumerate(pictures)}
        caption_row = {text: row for row, text in enumerate(captions)}
        images = [
            image_vectors[[picture_row[id(pair.source)] for pair in pairs]],
            image_vectors[[picture_row[id(pair.target)] for pair in pairs]],
        ]
        texts = [text_vectors[[caption_row[_captions(pair)[side]] for pair in pairs]] for side in (0, 1)]
        return similarity.directional_similarity(*images, *texts).tolist()

    def _presence(self, pairs: Sequence[GeneratedPair], score: str) -> list[float]:
        """The detector score with this name for each pair: the lowest of its phrases' best scores."""
        if not pairs:
            return []
        pictures = torch.stack([pair.source if score == "source_object_before" else pair.target for pair in pairs])
        instructions = [pair.instruction for pair in pairs]
        objects = [row.target_object if score == "target_object_after" else row.source_object for row in instructions]
        queries = [(n, phrase) for n, names in enumerate(objects) for phrase in masks.split_phrases(names)]
        detections = masks.detect_each(self.setup.models.detector, pictures, queries, 0.0, 1.0, self._batch)
        lowest = [1.0] * len(pairs)
        for (n, _), boxes in zip(queries, detections, strict=True):
            lowest[n] = min(lowest[n], float(boxes.scores[0]) if len(boxes) else 0.0)
        return lowest

    def _left_inside(self, pairs: Sequence[tuple[GeneratedPair, Tensor | None]]) -> list[float | None]:
        """The score `object_left_in_mask` of pairs with their masks, in the image that should not contain the object."""
        if not pairs:
            return []
        edits = []
        for n, (pair, M) in enumerate(pairs):
            vacant = 2 * n if pair.instruction.reverse else 2 * n + 1
            edits.append(ScoredEdit(2 * n, 2 * n + 1, M, *_captions(pair), None, None, vacant))
        pictures = torch.stack([picture for pair, _ in pairs for picture in (pair.source, pair.target)])
        return pair_scores.object_left_in_mask(pictures, edits, self.setup.models.detector, self._batch)

    def _widest_masks(self, pairs: Sequence[GeneratedPair]) -> list[Tensor | None]:
        """The mask [1, H, W] of the task's last recipe, on the image with the object; None if it is not detected."""
        pictures = [pair.target if pair.instruction.reverse else pair.source for pair in pairs]
        phrases = [object_phrases(pair.instruction) for pair in pairs]
        keys = [(picture.numpy().tobytes(), names) for picture, names in zip(pictures, phrases, strict=True)]
        new = [n for n, key in enumerate(keys) if key not in self._precise]
        if new:
            stack = torch.stack([pictures[n] for n in new])
            located = self.setup.locate(stack, [(row, phrases[n]) for row, n in enumerate(new)])
            self._precise |= dict(zip((keys[n] for n in new), located, strict=True))
        widest = [recipes_for(self.setup.params.recipes, pair.instruction.task)[-1].mask for pair in pairs]
        return [
            None if (P := self._precise[key]) is None or mask is None else mask.soft_mask(P)
            for key, mask in zip(keys, widest, strict=True)
        ]


def find_faults(pairs: Sequence[GeneratedPair], M: Sequence[Tensor | None], passed: Sequence[bool]) -> list[set[str] | None]:
    """The oracle's faults of each pair; None for pairs that did not pass, which it does not judge."""
    records = [to_record(pair, mask) for pair, mask, is_passed in zip(pairs, M, passed, strict=True) if is_passed]
    verdicts = iter(pair_judge.judge(records) if records else ())
    return [set(next(verdicts).faults) if is_passed else None for is_passed in passed]


def to_record(pair: GeneratedPair, M: Tensor | None) -> Pair:
    """The pair as a record for the oracle: task, captions, images and mask."""
    assert M is not None
    instruction, (source, target) = pair.instruction, to_uint8(torch.stack([pair.source, pair.target]))
    return Pair(
        instruction_id=instruction.id,
        parent_ids=(instruction.id,),
        task=instruction.task,
        instruction=instruction.text,
        source_caption=instruction.source_caption,
        target_caption=instruction.target_caption,
        seed=0,
        model_revision="",
        recipe={},
        source=encode_png(source),
        target=encode_png(target),
        mask=encode_png((M[0] * 255).round().to(torch.uint8).numpy()),
        scores={},
    )


def is_within(value: float | None, bounds: ScoreBounds) -> bool:
    """Whether a score is defined and within its bounds."""
    return value is not None and bounds.get("min", -1e9) <= value <= bounds.get("max", 1e9)


def l1_outside(pair: GeneratedPair, M: Tensor | None) -> float | None:
    """Mean absolute difference of both images in [0, 1], weighted by 1 - M; None without a mask or an outside."""
    if M is None or not (outside := 1 - M[0]).any():
        return None
    return float(((pair.source - pair.target).abs().mean(0) / 2 * outside).sum() / outside.sum())


def _captions(pair: GeneratedPair) -> tuple[str, str]:
    return pair.instruction.source_caption, pair.instruction.target_caption
