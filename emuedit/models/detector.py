"""The detector: zero-shot boxes for phrases, by OWL-ViT, OWLv2 or Grounding DINO with transformers.

Shapes: B images, H and W pixels, Q proposed boxes, K kept boxes, N phrases of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emuedit.models import image_tensors, model_sources


@dataclass(frozen=True)
class Detections:
    """Boxes of one image in descending order of score, on the CPU."""

    boxes_px: torch.Tensor  # float32 [K, 4], x0 y0 x1 y1, inside the image
    scores: torch.Tensor  # float32 [K] in [0, 1]
    phrase: torch.Tensor  # int64 [K], index into the image's phrases

    def __len__(self) -> int:
        return len(self.scores)


class Detector:
    """Detects objects with the method `detect`. The model's config determines the network family."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.model_type: str = model.config.model_type
        if self.model_type != "grounding-dino":
            _check_owl_tokenizer(processor.tokenizer)

    def detect(
        self,
        images: torch.Tensor,
        phrases: Sequence[Sequence[str]],
        threshold: float,
        nms_iou: float | None = None,
    ) -> list[Detections]:
        """Images [B, 3, H, W] in [-1, 1] and B lists of phrases -> B Detections with score > threshold.

        Each box is assigned to the phrase with the highest score. Boxes are clipped to the image, and empty boxes are
        dropped. `nms_iou` enables non-maximum suppression per phrase, with this IoU threshold: OWL-ViT and OWLv2
        propose one box per patch and need it (about 0.5), Grounding DINO does not. A phrase without tokens, such as "?", gets no
        boxes; of one with more tokens than the network reads, the first ones are used. Raises ValueError for a blank phrase and
        for unequal numbers of lists and images.
        """
        if len(phrases) != len(images):
            raise ValueError(f"want one list of phrases per image, got {len(phrases)} for {len(images)} images")
        if any(not phrase.strip() for image_phrases in phrases for phrase in image_phrases):
            raise ValueError("want non-blank phrases, got a blank one; drop it before the call")
        searchable = [[k for k, phrase in enumerate(names) if self._has_tokens(phrase)] for names in phrases]
        results = [_no_detections() for _ in phrases]
        with_phrases = [i for i, indices in enumerate(searchable) if indices]
        if with_phrases:
            image_bytes = list(image_tensors.to_bytes(images[with_phrases]))  # uint8 [3, H, W]
            queries = [[phrases[i][k] for k in searchable[i]] for i in with_phrases]
            propose = self._propose_grounding_dino if self.model_type == "grounding-dino" else self._propose_owl
            with torch.no_grad():
                proposals = propose(image_bytes, queries, threshold)
            height, width = images.shape[-2:]
            for i, proposal in zip(with_phrases, proposals, strict=True):
                results[i] = _select_boxes(proposal, torch.tensor(searchable[i]), height, width, nms_iou)
        return results

    def _has_tokens(self, phrase: str) -> bool:
        cleaned = _clean_phrase(phrase)
        return bool(cleaned) and bool(self.processor.tokenizer(cleaned, add_special_tokens=False)["input_ids"])

    def _propose_owl(self, images: list[torch.Tensor], queries: list[list[str]], threshold: float) -> list[Detections]:
        max_tokens = self.model.config.text_config.max_position_embeddings
        n_queries = max(len(names) for names in queries)
        padded = [names + [names[0]] * (n_queries - len(names)) for names in queries]
        inputs = self.processor(
            images=images, text=padded, return_tensors="pt", padding="max_length", truncation=True, max_length=max_tokens
        )
        for row, names in enumerate(queries):  # the network treats a query with first token 0 as padding
            inputs["input_ids"][row * n_queries + len(names) : (row + 1) * n_queries, 0] = 0
        outputs = self.model(**inputs.to(self.model.device, self.model.dtype))
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        proposals = self.processor.image_processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        return [Detections(proposal["boxes"], proposal["scores"], proposal["labels"]) for proposal in proposals]

    def _propose_grounding_dino(self, images: list[torch.Tensor], queries: list[list[str]], threshold: float) -> list[Detections]:
        queries = [[self._fit_prompt(phrase) for phrase in names] for names in queries]
        rows = [(image, group) for image, names in enumerate(queries) for group in self._prompt_groups(names)]
        prompts = [_build_prompt([queries[image][k] for k in group]) for image, group in rows]
        phrase_tokens = [self._find_tokens(text, spans) for text, spans in prompts]
        row_images = [images[image] for image, _ in rows]
        inputs = self.processor(images=row_images, text=[text for text, _ in prompts], return_tensors="pt", padding=True)
        outputs = self.model(**inputs.to(self.model.device, self.model.dtype))
        sizes = [(image.shape[-2], image.shape[-1]) for image in row_images]
        # Threshold -1 returns all Q boxes in pixels. Phrases are scored by token below, because the processor's labels are
        # decoded words, not indices.
        proposals = self.processor.image_processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=sizes)
        parts: list[list[Detections]] = [[] for _ in images]
        for (image, group), tokens, proposal, logits in zip(rows, phrase_tokens, proposals, outputs.logits, strict=True):
            token_scores = logits.float().sigmoid()  # [Q, tokens]
            scores = torch.stack([token_scores[:, positions].amax(dim=1) for positions in tokens], dim=1)  # [Q, N]
            best, phrase = scores.max(dim=1)
            keep = best > threshold
            indices = torch.tensor(group, device=phrase.device)[phrase[keep]]
            parts[image].append(Detections(proposal["boxes"][keep], best[keep], indices))
        return [_concatenate(image_parts) for image_parts in parts]

    def _prompt_groups(self, phrases: list[str]) -> list[list[int]]:
        """Indices of the phrases, each of which fits into a prompt, in as few groups as fit into one prompt each."""
        room = self.model.config.max_text_len - 2  # for [CLS] and [SEP]
        groups: list[list[int]] = []
        free = 0
        for index, phrase in enumerate(phrases):
            n_tokens = len(self.processor.tokenizer(phrase + ".", add_special_tokens=False)["input_ids"])
            if n_tokens > free:
                groups.append([])
                free = room
            groups[-1].append(index)
            free -= n_tokens
        return groups

    def _fit_prompt(self, phrase: str) -> str:
        """The phrase as it stands in a prompt, without the tokens that do not fit into one; OWL's processor cuts them, too."""
        cleaned = _clean_phrase(phrase)
        offsets = self.processor.tokenizer(cleaned, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        max_tokens = self.model.config.max_text_len - 3  # [CLS], the full stop and [SEP]
        return cleaned if len(offsets) <= max_tokens else cleaned[: offsets[max_tokens - 1][1]]

    def _find_tokens(self, text: str, spans: list[tuple[int, int]]) -> list[list[int]]:
        """The positions of each phrase's tokens in the prompt; `spans` are the phrases' (start, stop) characters."""
        offsets = self.processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        return [
            [k for k, (start, end) in enumerate(offsets) if start < stop and end > first and end > start] for first, stop in spans
        ]


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Detector:
    """Load a detector from a transformers folder or a hub id."""
    model_sources.read_manifest(name_or_path, model_sources.DETECTOR)
    classes = ("AutoModelForZeroShotObjectDetection", "AutoProcessor")
    return Detector(*model_sources.load_frozen(name_or_path, *classes, device, dtype))


def _clean_phrase(phrase: str) -> str:
    """Lower case, without "." and "?", which separate the phrases of Grounding DINO's prompt."""
    return " ".join(phrase.lower().replace(".", " ").replace("?", " ").split())


def _build_prompt(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Grounding DINO's prompt 'a. b.' and the span of characters of each of the cleaned phrases in it."""
    text, spans = "", []
    for phrase in phrases:
        text += " " if text else ""
        spans.append((len(text), len(text) + len(phrase)))
        text += phrase + "."
    return text, spans


def _select_boxes(
    proposal: Detections, phrase_indices: torch.Tensor, height: int, width: int, nms_iou: float | None
) -> Detections:
    """Clip boxes to the image, drop empty ones, sort by score, and apply non-maximum suppression per phrase.

    `phrase_indices` int64 [N] maps the proposal's phrases to the image's phrases.
    """
    boxes, scores = proposal.boxes_px.float().cpu(), proposal.scores.float().cpu()
    phrase = phrase_indices[proposal.phrase.long().cpu()]
    boxes = torch.stack(
        [boxes[:, 0].clamp(0, width), boxes[:, 1].clamp(0, height), boxes[:, 2].clamp(0, width),
         boxes[:, 3].clamp(0, height)], dim=1,
    )  # fmt: skip
    not_empty = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero().flatten()
    order = not_empty[scores[not_empty].argsort(descending=True, stable=True)]
    if nms_iou is not None and len(order):
        kept = model_sources.import_library("torchvision.ops").batched_nms(boxes[order], scores[order], phrase[order], nms_iou)
        order = order[kept]
    return Detections(boxes[order], scores[order], phrase[order])


def _concatenate(parts: Sequence[Detections]) -> Detections:
    """The boxes of one image for several groups of its phrases."""
    return Detections(*(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes_px", "scores", "phrase")))


def _no_detections() -> Detections:
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def _check_owl_tokenizer(tokenizer: Any) -> None:
    """Raise ValueError for special tokens whose ids OWL-ViT and OWLv2 would misread."""
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    if first == 0 or last != len(tokenizer) - 1:
        raise ValueError(
            "an OWL tokenizer must not have <|startoftext|> at id 0 (a first token of 0 means 'no query') and must have "
            f"<|endoftext|> at the highest id (text is pooled at the largest id), got {first} and {last} of "
            f"{len(tokenizer)}; reorder the vocabulary and train again"
        )
