"""Metrics on held-out scenes: average precision (AP50) of the detector and mean IoU of the segmenter."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from emuedit.models import detector, image_tensors, segmenter
from toyworld.scenes import render
from toyworld.scenes.palette import CARD, COLOURS, KINDS
from toyworld.scenes.scene import Scenes, generate_scenes, scene_numbers
from toyworld.training.detection_phrases import ANY, Phrase, match_objects

MIN_SCORE = 0.01  # detections with a lower score are ignored
NMS_IOU = 0.5
_BATCH = 64


def measure_detection(folder: Path, n: int = 600) -> dict[str, float]:
    """AP50 of the detector in `folder` over `n` held-out scenes.

    `ap50` uses phrases with all attributes of an object; `ap50_nouns` uses only nouns: 'star', 'card', 'person'.
    In both, a scene has one phrase per object and about as many that match nothing in it.
    """
    model = detector.load(str(folder))
    scenes = generate_scenes(scene_numbers("held_out", 0, n))
    truth = render.truth(scenes)
    x, boxes = image_tensors.from_uint8(truth.images), torch.from_numpy(truth.boxes)
    metrics = {}
    for name, all_attributes in (("ap50", True), ("ap50_nouns", False)):
        phrases = [_evaluation_phrases(scenes, i, all_attributes) for i in range(n)]
        metrics[name] = average_precision(scenes, boxes, phrases, _detect(model, x, phrases))
    return metrics


def measure_segmentation(folder: Path, detector_folder: Path, n: int = 600) -> dict[str, float]:
    """Mean IoU of the segmenter in `folder` over the objects of `n` held-out scenes.

    `miou_true_boxes` prompts it with true boxes. `miou_found_boxes` prompts it with the detector's best box for the
    object's attributes, or with an empty box if there is no detection.
    """
    model = segmenter.load(str(folder))
    scenes = generate_scenes(scene_numbers("held_out", 0, n))
    truth = render.truth(scenes)
    x, true_masks, true_boxes = image_tensors.from_uint8(truth.images), truth.masks, torch.from_numpy(truth.boxes)
    slots = [np.flatnonzero(scenes.present[i]) for i in range(n)]
    phrases = [[_full_phrase(scenes, i, int(slot)) for slot in slots[i]] for i in range(n)]
    detections = _detect(detector.load(str(detector_folder)), x, phrases)
    best_boxes = []
    for image_phrases, image_detections in zip(phrases, detections, strict=True):
        best = [image_detections.boxes_px[image_detections.phrase == k][:1] for k in range(len(image_phrases))]
        best_boxes.append(torch.cat([box if len(box) else torch.zeros(1, 4) for box in best] or [torch.zeros(0, 4)]))
    return {
        "miou_true_boxes": _mean_iou(model, x, true_masks, slots, [true_boxes[i, slots[i]] for i in range(n)]),
        "miou_found_boxes": _mean_iou(model, x, true_masks, slots, best_boxes),
    }


def average_precision(
    scenes: Scenes,
    boxes: Tensor,
    phrases: list[list[Phrase]],
    detections: list[detector.Detections],
    min_iou: float = 0.5,
) -> float:
    """Area under the precision-recall curve, with precision made monotone (PASCAL VOC 2010).

    The detections of all phrases of all scenes are pooled into one curve. `boxes` [N, 3, 4] in px are the ground truth.
    """
    scores: list[float] = []
    is_correct: list[bool] = []
    n_matches = 0
    for n, (image_phrases, image_detections) in enumerate(zip(phrases, detections, strict=True)):
        if not image_phrases:
            continue
        matches = torch.from_numpy(match_objects(image_phrases, scenes[n : n + 1]))[0]  # [3, P]
        n_matches += int(matches.sum())
        overlap = box_iou(image_detections.boxes_px, boxes[n]) * matches[:, image_detections.phrase].T  # [K, 3]
        matched_slots: set[int] = set()
        for row in overlap:  # detections are sorted, best first
            slot = int(row.argmax())
            is_correct.append(bool(row[slot] >= min_iou) and slot not in matched_slots)
            matched_slots |= {slot} if is_correct[-1] else set()
        scores += image_detections.scores.tolist()
    hits = np.array(is_correct)[np.argsort(-np.array(scores), kind="stable")]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float((np.maximum.accumulate(precision[::-1])[::-1] * hits).sum() / n_matches)


def _full_phrase(scenes: Scenes, n: int, slot: int) -> Phrase:
    """The phrase with all attributes of an object except size and position."""
    kind, colour, texture, variant = (int(getattr(scenes, name)[n, slot]) for name in ("kind", "colour", "texture", "variant"))
    return Phrase(kind, colour, texture or ANY, variant=variant if kind >= CARD else ANY)


def _evaluation_phrases(scenes: Scenes, n: int, all_attributes: bool) -> list[Phrase]:
    """Distinct phrases for scene n: one that matches each object, and for each object one that matches nothing."""
    rng = random.Random(f"{scenes.number[n]}/asked")
    phrases: dict[Phrase, None] = {}
    for slot in np.flatnonzero(scenes.present[n]):
        true = _full_phrase(scenes, n, int(slot))
        false = Phrase(rng.choice([k for k in range(len(KINDS)) if k != true.kind]), true.colour)
        if rng.random() < 0.5:  # the correct kind in a wrong colour
            false = replace(true, colour=rng.choice([c for c in range(len(COLOURS)) if c != true.colour]))
        for phrase in (true, false) if all_attributes else (Phrase(true.kind), Phrase(false.kind)):
            if phrase == true or phrase == Phrase(true.kind) or not match_objects([phrase], scenes[n : n + 1]).any():
                phrases[phrase] = None
    return list(phrases) or [Phrase(rng.randrange(len(KINDS)))]


def _detect(model: detector.Detector, x: Tensor, phrases: list[list[Phrase]]) -> list[detector.Detections]:
    texts = [[phrase.text() for phrase in image_phrases] for image_phrases in phrases]
    batches = [model.detect(x[i : i + _BATCH], texts[i : i + _BATCH], MIN_SCORE, NMS_IOU) for i in range(0, len(x), _BATCH)]
    return [detections for batch in batches for detections in batch]


def _mean_iou(
    model: segmenter.Segmenter, x: Tensor, true_masks: np.ndarray, slots: list[np.ndarray], boxes: list[Tensor]
) -> float:
    ious = []
    for i in range(0, len(x), _BATCH):
        for n, result in enumerate(model.segment(x[i : i + _BATCH], boxes[i : i + _BATCH]), i):
            for mask, true_mask in zip(result.masks.numpy(), true_masks[n, slots[n]], strict=True):
                ious.append((mask & true_mask).sum() / (mask | true_mask).sum())
    return float(np.mean(ious))
