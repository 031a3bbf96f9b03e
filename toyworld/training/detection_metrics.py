"""How well objects are found and cut out: AP50 of the detector, mean IoU of the segmenter, on held-out scenes."""

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
from toyworld.scenes.scene import Scenes, numbers, scenes
from toyworld.training.detection_phrases import ANY, Phrase, means

FLOOR = 0.01  # scores below are not looked at
NMS_IOU = 0.5
_BATCH = 64


def detection(folder: Path, n: int = 600) -> dict[str, float]:
    """AP50 over `n` held-out scenes, each asked for its objects by all their attributes and for as many that it lacks.

    `ap50_nouns` asks for 'star', 'card', 'person' instead.
    """
    model = detector.load(str(folder))
    all_scenes = scenes(numbers("held_out", 0, n))
    known = render.truth(all_scenes)
    x, boxes = image_tensors.from_uint8(known.images), torch.from_numpy(known.boxes)
    figures = {}
    for name, full in (("ap50", True), ("ap50_nouns", False)):
        asked = [_asked(all_scenes, i, full) for i in range(n)]
        figures[name] = average_precision(all_scenes, boxes, asked, _found(model, x, asked))
    return figures


def segmentation(folder: Path, detector_folder: Path, n: int = 600) -> dict[str, float]:
    """Mean IoU of masks from true boxes, and from the detector's best box for the object's attributes (0 if it has none)."""
    model = segmenter.load(str(folder))
    all_scenes = scenes(numbers("held_out", 0, n))
    known = render.truth(all_scenes)
    x, truth, true_boxes = image_tensors.from_uint8(known.images), known.masks, torch.from_numpy(known.boxes)
    slots = [np.flatnonzero(all_scenes.present[i]) for i in range(n)]
    asked = [[_named(all_scenes, i, int(slot)) for slot in slots[i]] for i in range(n)]
    found = _found(detector.load(str(detector_folder)), x, asked)
    best = []
    for phrases, one in zip(asked, found, strict=True):
        firsts = [one.boxes_px[one.phrase == k][:1] for k in range(len(phrases))]
        best.append(torch.cat([box if len(box) else torch.zeros(1, 4) for box in firsts] or [torch.zeros(0, 4)]))
    return {
        "miou_true_boxes": _mean_iou(model, x, truth, slots, [true_boxes[i, slots[i]] for i in range(n)]),
        "miou_found_boxes": _mean_iou(model, x, truth, slots, best),
    }


def average_precision(
    all_scenes: Scenes, boxes: Tensor, asked: list[list[Phrase]], found: list[detector.Detections], least_iou: float = 0.5
) -> float:
    """Area under precision over recall, all phrases of all pictures pooled, precision made monotone (PASCAL VOC 2010).

    Boxes [N, 3, 4] in px are the truth.
    """
    scores: list[float] = []
    right: list[bool] = []
    total = 0
    for n, (phrases, one) in enumerate(zip(asked, found, strict=True)):
        if not phrases:
            continue
        meant = torch.from_numpy(means(phrases, all_scenes[n : n + 1]))[0]  # [3, P]
        total += int(meant.sum())
        overlap = box_iou(one.boxes_px, boxes[n]) * meant[:, one.phrase].T  # [K, 3]
        taken: set[int] = set()
        for row in overlap:  # best first
            slot = int(row.argmax())
            right.append(bool(row[slot] >= least_iou) and slot not in taken)
            taken |= {slot} if right[-1] else set()
        scores += one.scores.tolist()
    hits = np.array(right)[np.argsort(-np.array(scores), kind="stable")]
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float((np.maximum.accumulate(precision[::-1])[::-1] * hits).sum() / total)


def _named(all_scenes: Scenes, n: int, slot: int) -> Phrase:
    kind, colour, texture, variant = (
        int(getattr(all_scenes, name)[n, slot]) for name in ("kind", "colour", "texture", "variant")
    )
    return Phrase(kind, colour, texture or ANY, variant=variant if kind >= CARD else ANY)


def _asked(all_scenes: Scenes, n: int, full: bool) -> list[Phrase]:
    """One phrase an object of scene n and one that nothing in it answers; no phrase twice."""
    say = random.Random(f"{all_scenes.number[n]}/asked")
    phrases: dict[Phrase, None] = {}
    for slot in np.flatnonzero(all_scenes.present[n]):
        true = _named(all_scenes, n, int(slot))
        false = Phrase(say.choice([k for k in range(len(KINDS)) if k != true.kind]), true.colour)
        if say.random() < 0.5:  # the right thing in another colour
            false = replace(true, colour=say.choice([c for c in range(len(COLOURS)) if c != true.colour]))
        for phrase in (true, false) if full else (Phrase(true.kind), Phrase(false.kind)):
            if phrase == true or phrase == Phrase(true.kind) or not means([phrase], all_scenes[n : n + 1]).any():
                phrases[phrase] = None
    return list(phrases) or [Phrase(say.randrange(len(KINDS)))]


def _found(model: detector.Detector, x: Tensor, asked: list[list[Phrase]]) -> list[detector.Detections]:
    texts = [[phrase.text() for phrase in phrases] for phrases in asked]
    parts = [model.detect(x[i : i + _BATCH], texts[i : i + _BATCH], FLOOR, NMS_IOU) for i in range(0, len(x), _BATCH)]
    return [one for part in parts for one in part]


def _mean_iou(model: segmenter.Segmenter, x: Tensor, truth: np.ndarray, slots: list[np.ndarray], boxes: list[Tensor]) -> float:
    ious = []
    for i in range(0, len(x), _BATCH):
        for n, got in enumerate(model.segment(x[i : i + _BATCH], boxes[i : i + _BATCH]), i):
            for mask, want in zip(got.masks.numpy(), truth[n, slots[n]], strict=True):
                ious.append((mask & want).sum() / (mask | want).sum())
    return float(np.mean(ious))
