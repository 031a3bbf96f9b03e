"""The people in pictures as stick figures: a detector finds them, ViTPose their joints, both through transformers.

Shapes: K people of one picture, 17 joints in the order of COCO.
"""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import torch

from emuedit.models import image_tensors, model_sources

DETECTOR = model_sources.Kind("a transformers object detector", "config.json")
POSE = model_sources.Kind("a transformers ViTPose", "config.json", "model_type", ("vitpose",))
PERSON_SCORE = 0.3
"""Score above which a box is a person (transformers' own example of ViTPose)."""
JOINT_SCORE = 0.3
"""Score above which a joint is drawn (the same example)."""
LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""Pairs of joints: the skeleton of COCO's annotations (Lin et al. 2014), counted from 0."""


class People:
    """`joints` is the one call."""

    def __init__(self, detector: Any, detector_processor: Any, pose: Any, pose_processor: Any) -> None:
        self.detector, self.detector_processor, self.pose, self.pose_processor = (
            detector,
            detector_processor,
            pose,
            pose_processor,
        )
        named = [number for number, name in detector.config.id2label.items() if name == "person"]
        if len(named) != 1:
            raise ValueError(
                f"want a detector with one class 'person', got {len(named)} of {len(detector.config.id2label)} classes; "
                "take one that was trained on COCO"
            )
        self.person = int(named[0])

    def joints(self, images: torch.Tensor) -> list[np.ndarray]:
        """Images [B, 3, H, W] in [-1, 1] -> for each float32 [K, 17, 3]: x px, y px and score of every person's joints."""
        shown = list(image_tensors.to_bytes(images))
        boxes = self._boxes(shown)
        found = [np.zeros((0, 17, 3), np.float32)] * len(shown)
        some = [i for i, own in enumerate(boxes) if own]
        if some:
            asked = [boxes[i] for i in some]
            inputs = self.pose_processor(images=[shown[i] for i in some], boxes=asked, return_tensors="pt")
            with torch.no_grad():
                out = self.pose(inputs["pixel_values"].to(self.pose.device, self.pose.dtype))
            for i, own in zip(some, self.pose_processor.post_process_pose_estimation(out, boxes=asked), strict=True):
                found[i] = np.stack([np.concatenate([one["keypoints"], one["scores"][:, None]], 1) for one in own])
        return found

    def _boxes(self, shown: list[torch.Tensor]) -> list[list[list[float]]]:
        """Of each picture the people's boxes as COCO has them: x0 y0 width height, px."""
        inputs = self.detector_processor(images=shown, return_tensors="pt").to(self.detector.device)
        with torch.no_grad():
            out = self.detector(**inputs)
        sizes = [tuple(one.shape[-2:]) for one in shown]
        found = self.detector_processor.post_process_object_detection(out, threshold=PERSON_SCORE, target_sizes=sizes)
        return [
            [
                [x0, y0, x1 - x0, y1 - y0]
                for x0, y0, x1, y1 in one["boxes"][one["labels"] == self.person].tolist()
                if x1 > x0 and y1 > y0
            ]
            for one in found
        ]


def stick_figures(joints: np.ndarray, height: int, width: int) -> np.ndarray:
    """Joints [K, 17, 3] -> their limbs in colours on black, uint8 [height, width, 3]. Joints below `JOINT_SCORE` are left out."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (width, height))
    draw, line_px = ImageDraw.Draw(canvas), max(1, round(max(height, width) / 100))
    for person in joints:
        for number, (a, b) in enumerate(LIMBS):
            if min(person[a, 2], person[b, 2]) > JOINT_SCORE:
                rgb = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number / len(LIMBS), 1, 1))
                draw.line([*person[a, :2].tolist(), *person[b, :2].tolist()], fill=rgb, width=line_px)
    return np.asarray(canvas)


def load(detector: str, pose: str, device: str) -> People:
    """Both networks from transformers folders or hub ids (PekingU/rtdetr_r50vd_coco_o365, usyd-community/vitpose-base-simple)."""
    model_sources.manifest(detector, DETECTOR)
    model_sources.manifest(pose, POSE)
    transformers = model_sources.library("transformers")
    parts = []
    for kind, name in ((transformers.AutoModelForObjectDetection, detector), (transformers.VitPoseForPoseEstimation, pose)):
        model = kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        parts += [model.to(device).requires_grad_(False).eval(), transformers.AutoImageProcessor.from_pretrained(name)]
    return People(*parts)
