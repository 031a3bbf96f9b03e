"""Pose estimation and stick figures: an object detector finds people, ViTPose finds their joints, through transformers.

Shapes: K people of one image, 17 joints in COCO's order.
"""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import torch

from emuedit.models import image_tensors, model_sources

DETECTOR = model_sources.ModelKind("a transformers object detector", "config.json")
POSE = model_sources.ModelKind("a transformers ViTPose", "config.json", "model_type", ("vitpose",))
PERSON_SCORE = 0.3
"""Score above which a box counts as a person, from transformers' example for ViTPose."""
JOINT_SCORE = 0.3
"""Score above which a joint is drawn, from the same example."""
LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
"""Pairs of joints, counted from 0: the skeleton of COCO's annotations (Lin et al. 2014)."""


class PoseEstimator:
    """Estimates the joints of all people with the method `estimate_joints`."""

    def __init__(self, detector: Any, detector_processor: Any, pose: Any, pose_processor: Any) -> None:
        self.detector, self.detector_processor = detector, detector_processor
        self.pose, self.pose_processor = pose, pose_processor
        person_labels = [number for number, name in detector.config.id2label.items() if name == "person"]
        if len(person_labels) != 1:
            raise ValueError(
                f"want a detector with one class 'person', got {len(person_labels)} of {len(detector.config.id2label)} "
                "classes; use one trained on COCO"
            )
        self.person_label = int(person_labels[0])

    def estimate_joints(self, images: torch.Tensor) -> list[np.ndarray]:
        """Images [B, 3, H, W] in [-1, 1] -> per image float32 [K, 17, 3]: x px, y px and score of every joint."""
        image_bytes = list(image_tensors.to_bytes(images))
        boxes = self._detect_people(image_bytes)
        joints = [np.zeros((0, 17, 3), np.float32)] * len(image_bytes)
        with_people = [i for i, image_boxes in enumerate(boxes) if image_boxes]
        if with_people:
            people_boxes = [boxes[i] for i in with_people]
            inputs = self.pose_processor(images=[image_bytes[i] for i in with_people], boxes=people_boxes, return_tensors="pt")
            pixels = inputs["pixel_values"].to(self.pose.device, self.pose.dtype)
            with torch.no_grad():
                out = self.pose(pixels, dataset_index=self._dataset_index(len(pixels)))
            poses = self.pose_processor.post_process_pose_estimation(out, boxes=people_boxes)
            for i, people in zip(with_people, poses, strict=True):
                joints[i] = np.stack([np.concatenate([person["keypoints"], person["scores"][:, None]], 1) for person in people])
        return joints

    def _dataset_index(self, n_people: int) -> torch.Tensor | None:
        """The dataset whose joints ViTPose++ (arXiv 2212.04246) estimates: 0, COCO, int64 [n_people]. None: ViTPose has one."""
        if self.pose.config.backbone_config.num_experts == 1:
            return None
        return torch.zeros(n_people, dtype=torch.int64, device=self.pose.device)

    def _detect_people(self, image_bytes: list[torch.Tensor]) -> list[list[list[float]]]:
        """Boxes of the people in each image in COCO format: x0 y0 width height, px."""
        inputs = self.detector_processor(images=image_bytes, return_tensors="pt").to(self.detector.device)
        with torch.no_grad():
            out = self.detector(**inputs)
        sizes = [tuple(image.shape[-2:]) for image in image_bytes]
        detections = self.detector_processor.post_process_object_detection(out, threshold=PERSON_SCORE, target_sizes=sizes)
        return [
            [
                [x0, y0, x1 - x0, y1 - y0]
                for x0, y0, x1, y1 in detection["boxes"][detection["labels"] == self.person_label].tolist()
                if x1 > x0 and y1 > y0
            ]
            for detection in detections
        ]


def draw_stick_figures(joints: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw the limbs between joints [K, 17, 3] in colours on black, uint8 [height, width, 3].

    Joints with a score of at most `JOINT_SCORE` are omitted.
    """
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (width, height))
    draw, line_px = ImageDraw.Draw(canvas), max(1, round(max(height, width) / 100))
    for person in joints:
        for number, (a, b) in enumerate(LIMBS):
            if min(person[a, 2], person[b, 2]) > JOINT_SCORE:
                rgb = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number / len(LIMBS), 1, 1))
                draw.line([*person[a, :2].tolist(), *person[b, :2].tolist()], fill=rgb, width=line_px)
    return np.asarray(canvas)


def load(detector: str, pose: str, device: str) -> PoseEstimator:
    """Load both networks from transformers folders or hub ids.

    Examples of hub ids: PekingU/rtdetr_r50vd_coco_o365, and usyd-community/vitpose-base-simple or vitpose-plus-base.
    """
    model_sources.read_manifest(detector, DETECTOR)
    model_sources.read_manifest(pose, POSE)
    options = ("AutoImageProcessor", device, torch.float32)
    return PoseEstimator(
        *model_sources.load_frozen(detector, "AutoModelForObjectDetection", *options),
        *model_sources.load_frozen(pose, "VitPoseForPoseEstimation", *options),
    )
