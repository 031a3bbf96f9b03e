"""The CLIP scorer: embeds images and texts in one space, with open_clip.

Shapes: B images or texts, H and W pixels, D the width of the shared space.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from emuedit.models import image_tensors, model_sources
from emuedit.models.model_files import ModelFileError

_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Files of a repository that open_clip needs."""
_TOKENIZER_OPTIONS = frozenset({"clean", "strip_sep_token", "language"})
"""Of open_clip's tokenizers. It passes all others to transformers, where `trust_remote_code` would run code of the repository."""


class ClipScorer:
    """`embed_images` and `embed_texts` return unit vectors, so their dot products are cosine similarities."""

    def __init__(self, model: Any, tokenizer: Any, dtype: torch.dtype = torch.float32) -> None:
        """dtype: of the pixels; open_clip converts only some weights, so a single parameter does not determine it."""
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.preprocess_cfg: dict[str, Any] = model.visual.preprocess_cfg
        self.device: torch.device = model.logit_scale.device

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images [B, 3, H, W] in [-1, 1] as unit vectors, float32 [B, D] on the model's device."""
        pixels = preprocess(image_tensors.check_images(images).to(self.device, torch.float32), self.preprocess_cfg)
        with torch.no_grad():
            vectors: torch.Tensor = self.model.encode_image(pixels.to(self.dtype))
        return torch.nn.functional.normalize(vectors.float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed B texts as unit vectors, float32 [B, D] on the model's device. Texts are truncated to the context length."""
        with torch.no_grad():
            vectors: torch.Tensor = self.model.encode_text(self.tokenizer(list(texts)).to(self.device))
        return torch.nn.functional.normalize(vectors.float(), dim=-1)


def preprocess(images: torch.Tensor, cfg: dict[str, Any]) -> torch.Tensor:
    """open_clip's evaluation transform on tensors: [B, 3, H, W] in [-1, 1] -> [B, 3, h, w], normalised.

    It follows open_clip.transform.image_transform, except that the resized image is not rounded to bytes.
    """
    tvf = model_sources.import_library("torchvision.transforms.functional")
    mode = getattr(tvf.InterpolationMode, cfg["interpolation"].upper(), tvf.InterpolationMode.BICUBIC)
    h, w = (cfg["size"], cfg["size"]) if isinstance(cfg["size"], int) else cfg["size"]
    height, width = images.shape[-2:]
    unit = (images + 1) / 2  # [0, 1]
    if cfg["resize_mode"] == "squash":
        target = [h, w]
    elif cfg["resize_mode"] == "longest":
        ratio = max(height / h, width / w)
        target = [round(height / ratio), round(width / ratio)]
    elif h == w:  # torchvision resizes the shortest edge to h; the longer edge is rounded down
        target = [h, int(h * width / height)] if height <= width else [int(w * height / width), w]
    else:
        ratio = min(height / h, width / w)
        target = [round(height / ratio), round(width / ratio)]
    if target != [height, width]:
        unit = tvf.resize(unit, target, interpolation=mode, antialias=True).clamp(0, 1)
    if cfg["resize_mode"] == "longest":
        unit = model_sources.import_library("open_clip.transform").center_crop_or_pad(unit, [h, w], fill=cfg["fill_color"] / 255)
    else:
        unit = tvf.center_crop(unit, [h, w])
    normalised: torch.Tensor = tvf.normalize(unit, list(cfg["mean"]), list(cfg["std"]))
    return normalised


def load(name_or_path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> ClipScorer:
    """Load a scorer from an open_clip folder, an open_clip 'model/tag' such as 'ViT-L-14/openai', or a hub id."""
    open_clip = model_sources.import_library("open_clip")
    name, tag, options = _resolve_name(open_clip, name_or_path)
    precision = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype)
    if precision is None:
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    model = open_clip.create_model(name, pretrained=tag, precision=precision, device=device, require_pretrained=True, **options)
    tokenizer = open_clip.get_tokenizer(name)
    _check_tokenizer(tokenizer, model, name_or_path)
    return ClipScorer(model.requires_grad_(False).eval(), tokenizer, dtype)


def have_equal_tokens(name_or_path: str, first: str, second: str) -> bool:
    """Whether the texts are equal for the model of `load`, as texts are that differ only beyond the context length."""
    tokens = _load_tokenizer(name_or_path)([first, second])
    return bool((tokens[0] == tokens[1]).all())


@functools.cache
def _load_tokenizer(name_or_path: str) -> Any:
    open_clip = model_sources.import_library("open_clip")
    return open_clip.get_tokenizer(_resolve_name(open_clip, name_or_path)[0])


def _resolve_name(open_clip: Any, name_or_path: str) -> tuple[str, str | None, dict[str, Any]]:
    """The model name, weights tag and options that open_clip needs for a folder, a 'model/tag' or a hub id."""
    if model_sources.is_folder(name_or_path):
        _check_manifest(name_or_path)
        return f"local-dir:{name_or_path}", None, {}
    model, _, tag = name_or_path.partition("/")
    if model in open_clip.list_models():
        cfg = open_clip.get_pretrained_cfg(model, tag)
        if not cfg:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
            raise ValueError(f"want '{model}/<tag>' with a tag of {tags}; got {name_or_path!r}")
        # open_clip only warns if the weights were trained with QuickGELU and the named model has GELU
        return model, tag, {"force_quick_gelu": bool(cfg.get("quick_gelu", False))}
    _check_manifest(name_or_path)
    if model_sources.split_revision(name_or_path)[1]:  # open_clip can load only the newest version of a hub id
        return f"local-dir:{model_sources.download_snapshot(name_or_path, _FILES)}", None, {}
    return f"hf-hub:{name_or_path}", None, {}


def _check_manifest(name_or_path: str) -> None:
    """Raise ModelFileError unless it is a CLIP model whose tokenizer has only options of open_clip."""
    manifest = model_sources.read_manifest(name_or_path, model_sources.CLIP)
    text_config = (manifest.get("model_cfg") or {}).get("text_cfg") or {}
    options = text_config.get("tokenizer_kwargs") or {}
    if unknown := sorted(options.keys() - _TOKENIZER_OPTIONS):
        raise ModelFileError(
            f"want only {', '.join(sorted(_TOKENIZER_OPTIONS))} in text_cfg.tokenizer_kwargs of {model_sources.CLIP.file}, got "
            f"{', '.join(unknown)} in {name_or_path!r}, which can run code; delete them, or take another model"
        )


def _check_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    """Raise ValueError if the tokenizer does not match the text encoder."""
    embedding = getattr(model, "token_embedding", None)
    inner = getattr(tokenizer, "tokenizer", None)
    if embedding is None or inner is None:
        return
    if len(inner) > embedding.num_embeddings:
        raise ValueError(
            f"{name}: the tokenizer has {len(inner)} tokens, the text tower {embedding.num_embeddings}; "
            "set text_cfg.vocab_size to the tokenizer's length and train again"
        )
    if model.text_pool_type == "eos" and model.text_eos_id != inner.eos_token_id:
        raise ValueError(f"{name}: text_cfg.eos_id must be the tokenizer's {inner.eos_token_id}, got {model.text_eos_id}")
    if model.text_pool_type == "argmax" and inner.eos_token_id != len(inner) - 1:
        raise ValueError(
            f"{name}: pool_type 'argmax' reads the highest id, so <|endoftext|> must be {len(inner) - 1}, "
            f"got {inner.eos_token_id}; set pool_type 'eos' and eos_id in text_cfg"
        )
