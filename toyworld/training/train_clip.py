"""Training of the CLIP scorer: a small open_clip model for images of every kind and their captions.

Shapes: B images or captions, T tokens.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from emuedit.models.image_tensors import from_uint8
from toyworld.edits.exact_targets import FILTERS
from toyworld.scenes.caption_grammar import POSITION_PHRASES, caption, slot_noun, wording_rng
from toyworld.scenes.palette import CELLS, PERSON, SIZE
from toyworld.scenes.scene import Scenes, generate_scenes, pick, scene_numbers, uniform
from toyworld.training import tokenizer as tokens
from toyworld.training import train_detector
from toyworld.training.mixed_pictures import KINDS, SHARES
from toyworld.training.render_cache import N_MIXED, cache_folder, load_mixed
from toyworld.training.training_run import Recipe, autocast, device, train

RECIPE = Recipe(steps=900, batch=128, lr=1e-3, warmup_steps=60, decay_share=0.5, ema_decay=0.995)
WIDTH = train_detector.WIDTH
_MAPS = {
    "depth": "a depth map of",
    "normal": "a normal map of",
    "segmap": "a segmentation map of",
    "sketch": "a sketch of",
    "contour": "a contour drawing of",
}
_FILTERED = dict(
    zip(
        FILTERS,
        ("bright", "dark", "high contrast", "low contrast", "vivid", "faded", "wrongly coloured", "blurred", "sharpened"),
        strict=True,
    )
)


def config(n_tokens: int = tokens.N_TOKENS) -> dict[str, Any]:
    """The content of open_clip_config.json. The towers have the detector's sizes, so that its weights can be loaded."""
    vision = {"image_size": SIZE, "patch_size": 8, "width": WIDTH, "layers": 4, "head_width": WIDTH // 4}
    text = {
        "context_length": tokens.CONTEXT,
        "vocab_size": n_tokens,
        "hf_tokenizer_name": "local",
        "width": WIDTH,
        "heads": 4,
        "layers": 2,
    }
    model = {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}
    half = [0.5, 0.5, 0.5]
    return {"model_cfg": model, "preprocess_cfg": {"mean": half, "std": half}}


def build(n_tokens: int = tokens.N_TOKENS) -> open_clip.CLIP:
    """A model with random weights."""
    return open_clip.CLIP(**config(n_tokens)["model_cfg"])


def load_detector_weights(model: open_clip.CLIP, folder: Path) -> None:
    """Initialise both towers from the detector in `folder`.

    OWL-ViT (arXiv 2205.06230) initialises its detector from a CLIP pretrained on web captions. We do the
    reverse: in the toy world boxes and phrases are exact, and more informative per image than captions.
    """
    detector_weights = load_file(folder / "model.safetensors")
    clip_weights = model.state_dict()
    for tower, transformer in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        prefix = f"owlvit.{tower}.encoder.layers."
        for name, value in detector_weights.items():
            if not name.startswith(prefix):
                continue
            layer, _, rest = name.removeprefix(prefix).partition(".")
            module, _, kind = rest.rpartition(".")  # kind: weight or bias
            block = f"{transformer}.resblocks.{layer}."
            if module.startswith("self_attn.") and module[10] in "qkv" and module[10:] != "out_proj":
                third = "qkv".index(module[10])  # open_clip stores q, k and v in one matrix
                clip_weights[f"{block}attn.in_proj_{kind}"][third * WIDTH : (third + 1) * WIDTH] = value
            else:
                clip_weights[f"{block}{_BLOCK_MODULES[module]}.{kind}"].copy_(value)
    for name, detector_name in _OTHER_TENSORS.items():
        value = detector_weights[f"owlvit.{detector_name}"].float()
        clip_weights[name][: len(value)] = value  # the detector has fewer text positions
    clip_weights["text_projection"].copy_(detector_weights["owlvit.text_projection.weight"].T)
    model.load_state_dict(clip_weights)


_BLOCK_MODULES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
"""Modules of a transformer block: the detector's name to open_clip's."""
_OTHER_TENSORS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layernorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layernorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
"""Tensors outside the transformer blocks: open_clip's name to the detector's."""


def save(model: open_clip.CLIP, tokenizer: Any, folder: Path) -> None:
    """Write a folder that open_clip loads as `local-dir:`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config(len(tokenizer)), indent=2) + "\n")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


def caption_picture(scenes: Scenes, n: int, kind: str, rng: random.Random) -> str:
    """A caption for the image of this kind that `mixed_pictures.render_mixed` renders of scene n.

    Captions of maps, drawings and skeletons do not name object colours, because these images do not show them.
    """
    number = scenes.number[n : n + 1]
    if kind in _MAPS:
        return f"{_MAPS[kind]} {_name_objects(scenes, n, rng)}"
    if kind == "pose":
        people = [slot_noun(scenes, n, int(s)) for s in np.flatnonzero(scenes.kind[n] == PERSON)]
        return f"a skeleton of a {people[0]}" if people else "an empty pose map"
    scene_caption = caption(scenes, n, rng)
    if kind in ("detect", "segment"):
        n_objects = int(scenes.count[n])
        if not n_objects:
            return scene_caption
        target = slot_noun(scenes, n, int(uniform(number, "anyslot")[0] * n_objects))
        return (
            f"a box around the {target}, {scene_caption}" if kind == "detect" else f"the {target} marked in cyan, {scene_caption}"
        )
    if kind == "filter":
        filter_name = FILTERS[pick(number, "filter", np.ones(len(FILTERS)))[0]]
        return f"a {_FILTERED[filter_name]} picture, {scene_caption}"
    return f"a low resolution picture, {scene_caption}" if kind == "quarter" else scene_caption


def _name_objects(scenes: Scenes, n: int, rng: random.Random) -> str:
    """The objects of scene n and their places, without colours."""
    slots = [int(s) for s in np.flatnonzero(scenes.present[n])]
    rng.shuffle(slots)
    objects = [f"a {slot_noun(scenes, n, slot)} {rng.choice(POSITION_PHRASES[CELLS[scenes.cell[n, slot]]])}" for slot in slots]
    return " and ".join(objects) or "nothing"


def loss(model: open_clip.CLIP, x: Tensor, ids: Tensor) -> Tensor:
    """The symmetric contrastive loss (Radford et al. 2021, arXiv 2103.00020, figure 3); x [B, 3, H, W], ids [B, T]."""
    # on a CPU, training with unfused attention is three times as fast as with fused attention
    with autocast(), sdpa_kernel(SDPBackend.MATH):
        image_embeddings, text_embeddings = model.encode_image(x), model.encode_text(ids)
    scale = model.logit_scale.clamp_max(4.6052).exp()  # at most 100
    logits = scale * F.normalize(image_embeddings.float(), dim=-1) @ F.normalize(text_embeddings.float(), dim=-1).T  # [B, B]
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def run(scratch: Path, recipe: Recipe = RECIPE, n_images: int = N_MIXED) -> Path:
    """Train the model and return its folder.

    If a trained detector exists in the neighbouring scratch folder, the training starts from its weights.
    """
    detector_folder = scratch.parent / "detector" / "model"
    tokenizer = tokens.build(scratch / "tokenizer")
    torch.manual_seed(0)
    model = build(len(tokenizer))
    if detector_folder.exists():
        load_detector_weights(model, detector_folder)
    images = load_mixed(cache_folder(scratch), n_images)
    image_numbers = scene_numbers("train", 0, n_images)
    scenes, kinds = generate_scenes(image_numbers), pick(image_numbers, "picture", SHARES)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).choice(n_images, size=recipe.batch, replace=recipe.batch > n_images))
        captions = [caption_picture(scenes, i, KINDS[kinds[i]], wording_rng(scenes.number[i], "clip", step)) for i in rows]
        ids = tokenizer(captions, padding="max_length", max_length=tokens.CONTEXT, truncation=True, return_tensors="pt")
        x = train_detector.jitter_colours(from_uint8(images[rows]).to(device()))
        return loss(model, x, ids.input_ids.to(device()))

    train(model, loss_at, recipe, scratch)
    save(model, tokenizer, scratch / "model")
    return scratch / "model"
