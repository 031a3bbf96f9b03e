"""The detector: zero-shot boxes for phrases, by OWL-ViT, OWLv2 or Grounding DINO through transformers.

Shapes: B pictures, H and W pixels, Q the network's box proposals, K boxes kept, N phrases of one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emuedit.models import image_tensors, model_sources


@dataclass(frozen=True)
class Detections:
    """Boxes of one picture, best first, on the CPU."""

    boxes_px: torch.Tensor  # float32 [K, 4], x0 y0 x1 y1, inside the picture
    scores: torch.Tensor  # float32 [K] in [0, 1]
    phrase: torch.Tensor  # int64 [K], index into the phrases asked for

    def __len__(self) -> int:
        return len(self.scores)


class Detector:
    """`detect` is the one call; which network answers is read from the model's own config."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.kind: str = model.config.model_type
        if self.kind != "grounding-dino":
            _check_owl_tokenizer(processor.tokenizer)

    def detect(
        self,
        images: torch.Tensor,
        phrases: Sequence[Sequence[str]],
        threshold: float,
        nms_iou: float | None = None,
    ) -> list[Detections]:
        """Images [B, 3, H, W] in [-1, 1] and B lists of phrases -> B Detections with score > threshold.

        Each box goes to the phrase it scores highest for. Boxes are clipped to the picture, empty ones dropped.
        `nms_iou` drops, within one phrase, boxes that overlap a better one by more: the OWL family proposes one box
        a patch and wants it (0.5 or so), Grounding DINO does not.
        """
        if len(phrases) != len(images):
            raise ValueError(f"detect wants one list of phrases a picture, got {len(phrases)} for {len(images)}")
        if any(not phrase.strip() for asked in phrases for phrase in asked):
            raise ValueError("a phrase must not be empty; drop it before asking for it")
        results = [_nothing() for _ in phrases]
        asking = [i for i, asked in enumerate(phrases) if asked]
        if asking:
            shown = list(image_tensors.to_bytes(images[asking]))  # uint8 [3, H, W]: what the processors were made for
            asked = [list(phrases[i]) for i in asking]
            find = self._grounding if self.kind == "grounding-dino" else self._owl
            with torch.no_grad():
                found = find(shown, asked, threshold)
            height, width = images.shape[-2:]
            for i, one in zip(asking, found, strict=True):
                results[i] = _tidy(one, height, width, nms_iou)
        return results

    def _owl(self, shown: list[torch.Tensor], asked: list[list[str]], threshold: float) -> list[Detections]:
        room = self.model.config.text_config.max_position_embeddings
        most = max(len(names) for names in asked)
        padded = [names + [names[0]] * (most - len(names)) for names in asked]
        inputs = self.processor(
            images=shown, text=padded, return_tensors="pt", padding="max_length", truncation=True, max_length=room
        )
        for row, names in enumerate(asked):  # token 0 in front marks a query as padding to the network
            inputs["input_ids"][row * most + len(names) : (row + 1) * most, 0] = 0
        outputs = self.model(**inputs.to(self.model.device, self.model.dtype))
        sizes = [(image.shape[-2], image.shape[-1]) for image in shown]
        found = self.processor.image_processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        return [Detections(one["boxes"], one["scores"], one["labels"]) for one in found]

    def _grounding(self, shown: list[torch.Tensor], asked: list[list[str]], threshold: float) -> list[Detections]:
        prompts = [_prompt(names) for names in asked]
        tokens = [self._tokens(text, spans) for text, spans in prompts]
        inputs = self.processor(images=shown, text=[text for text, _ in prompts], return_tensors="pt", padding=True)
        outputs = self.model(**inputs.to(self.model.device, self.model.dtype))
        sizes = [(image.shape[-2], image.shape[-1]) for image in shown]
        placed = self.processor.image_processor.post_process_object_detection(
            outputs, threshold=-1.0, target_sizes=sizes
        )  # all Q boxes in pixels: the text side is read below, by token and not by decoded words
        found = []
        for of_phrases, boxes, logits in zip(tokens, placed, outputs.logits, strict=True):
            token_scores = logits.float().sigmoid()  # [Q, tokens]
            scores = torch.stack([token_scores[:, of].amax(dim=1) for of in of_phrases], dim=1)  # [Q, N]
            best, phrase = scores.max(dim=1)
            keep = best > threshold
            found.append(Detections(boxes["boxes"][keep], best[keep], phrase[keep]))
        return found

    def _tokens(self, text: str, spans: list[tuple[int, int]]) -> list[list[int]]:
        """For each phrase, the positions of its tokens in the prompt."""
        offsets = self.processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        room = self.model.config.max_text_len
        tokens = [
            [k for k, (start, end) in enumerate(offsets) if start < stop and end > first and end > start] for first, stop in spans
        ]
        if any(not of for of in tokens) or len(offsets) > room:
            raise ValueError(f"the phrases must fit into {room} tokens and each have one, got {text!r}; ask for fewer at a time")
        return tokens


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32, revision: str | None = None) -> Detector:
    """A detector from a transformers folder or a hub id."""
    model_sources.manifest(name_or_path, model_sources.DETECTOR, revision)
    transformers = model_sources.library("transformers")
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
        name_or_path, revision=revision, dtype=dtype, use_safetensors=True
    )
    processor = transformers.AutoProcessor.from_pretrained(name_or_path, revision=revision)
    return Detector(model.to(device).requires_grad_(False).eval(), processor)


def _prompt(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Grounding DINO's text 'a. b.' and where each phrase lies in it; a full stop inside a phrase becomes a space."""
    text, spans = "", []
    for phrase in phrases:
        clean = " ".join(phrase.lower().replace(".", " ").replace("?", " ").split())
        text += " " if text else ""
        spans.append((len(text), len(text) + len(clean)))
        text += clean + "."
    return text, spans


def _tidy(found: Detections, height: int, width: int, nms_iou: float | None) -> Detections:
    boxes, scores = found.boxes_px.float().cpu(), found.scores.float().cpu()
    phrase = found.phrase.long().cpu()
    boxes = torch.stack(
        [boxes[:, 0].clamp(0, width), boxes[:, 1].clamp(0, height), boxes[:, 2].clamp(0, width),
         boxes[:, 3].clamp(0, height)], dim=1,
    )  # fmt: skip
    solid = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero().flatten()
    order = solid[scores[solid].argsort(descending=True, stable=True)]
    if nms_iou is not None and len(order):
        kept = model_sources.library("torchvision.ops").batched_nms(boxes[order], scores[order], phrase[order], nms_iou)
        order = order[kept]
    return Detections(boxes[order], scores[order], phrase[order])


def _nothing() -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def _check_owl_tokenizer(tokenizer: Any) -> None:
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    if first == 0 or last != len(tokenizer) - 1:
        raise ValueError(
            "an OWL tokenizer needs <|startoftext|> anywhere but at id 0 (0 in front means 'no query') and "
            f"<|endoftext|> at the highest id (text is pooled at the largest), got {first} and {last} of "
            f"{len(tokenizer)}; order the vocabulary so and train again"
        )
