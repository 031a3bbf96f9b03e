"""The CLIP judge: a small open_clip model that puts pictures of every kind and what is said of them into one space.

Shapes: B pictures or captions, T tokens, D the shared width.
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
from toyworld.scenes.caption_grammar import WHERE, caption, noun, voice
from toyworld.scenes.palette import CELLS, PERSON, SIZE
from toyworld.scenes.scene import Scenes, numbers, pick, scenes, uniform
from toyworld.training import tokenizer as tokens
from toyworld.training import train_detector
from toyworld.training.mixed_pictures import KINDS, SHARES
from toyworld.training.render_cache import mixed_pictures
from toyworld.training.training_run import Recipe, bf16, device, train

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
    """The open_clip_config.json: towers of the detector's sizes, so that they can start from its weights."""
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
    """Random weights."""
    return open_clip.CLIP(**config(n_tokens)["model_cfg"])


def borrow(model: open_clip.CLIP, folder: Path) -> None:
    """Start both towers from the detector's. OWL-ViT (arXiv 2205.06230) goes the other way, from a CLIP with a web of
    captions; here boxes and phrases are known exactly and teach more a picture than captions do.
    """
    from_owl = load_file(folder / "model.safetensors")
    ours = model.state_dict()
    for tower, blocks in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for name, value in from_owl.items():
            head = f"owlvit.{tower}.encoder.layers."
            if not name.startswith(head):
                continue
            layer, _, rest = name.removeprefix(head).partition(".")
            part, _, kind = rest.rpartition(".")
            block = f"{blocks}.resblocks.{layer}."
            if part.startswith("self_attn.") and part[10] in "qkv" and part[10:] != "out_proj":
                third = "qkv".index(part[10])
                ours[f"{block}attn.in_proj_{kind}"][third * WIDTH : (third + 1) * WIDTH] = value
            else:
                ours[f"{block}{_PARTS[part]}.{kind}"].copy_(value)
    for name, other in _WHOLE.items():
        value = from_owl[f"owlvit.{other}"].float()
        ours[name][: len(value)] = value
    ours["text_projection"].copy_(from_owl["owlvit.text_projection.weight"].T)
    model.load_state_dict(ours)


_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_WHOLE = {
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


def save(model: open_clip.CLIP, tokenizer: Any, folder: Path) -> None:
    """The folder that open_clip reads as `local-dir:`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config(len(tokenizer)), indent=2) + "\n")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


def spoken(all_scenes: Scenes, n: int, kind: str, say: random.Random) -> str:
    """What one says of the picture of a kind that `pictures.mixed` makes of scene n: no colours where none are seen."""
    number = all_scenes.number[n : n + 1]
    if kind in _MAPS:
        return f"{_MAPS[kind]} {_forms(all_scenes, n, say)}"
    if kind == "pose":
        people = [noun(all_scenes, n, int(s)) for s in np.flatnonzero(all_scenes.kind[n] == PERSON)]
        return f"a skeleton of a {people[0]}" if people else "an empty pose map"
    told = caption(all_scenes, n, say)
    if kind in ("detect", "segment"):
        count = int(all_scenes.count[n])
        if not count:
            return told
        thing = noun(all_scenes, n, int(uniform(number, "anyslot")[0] * count))
        return f"a box around the {thing}, {told}" if kind == "detect" else f"the {thing} marked in cyan, {told}"
    if kind == "filter":
        return f"a {_FILTERED[FILTERS[pick(number, 'filter', np.ones(len(FILTERS)))[0]]]} picture, {told}"
    return f"a low resolution picture, {told}" if kind == "quarter" else told


def _forms(all_scenes: Scenes, n: int, say: random.Random) -> str:
    slots = [int(s) for s in np.flatnonzero(all_scenes.present[n])]
    say.shuffle(slots)
    return (
        " and ".join(f"a {noun(all_scenes, n, s)} {say.choice(WHERE[CELLS[all_scenes.cell[n, s]]])}" for s in slots) or "nothing"
    )


def loss(model: open_clip.CLIP, x: Tensor, ids: Tensor) -> Tensor:
    """The symmetric contrastive loss (Radford et al. 2021, arXiv 2103.00020, figure 3); x [B, 3, H, W], ids [B, T]."""
    # on a CPU the plain attention trains three times as fast as the fused one
    with bf16(), sdpa_kernel(SDPBackend.MATH):
        pictures, texts = model.encode_image(x), model.encode_text(ids)
    scale = model.logit_scale.clamp_max(4.6052).exp()  # at most 100
    logits = scale * F.normalize(pictures.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T  # [B, B]
    same = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def run(scratch: Path, recipe: Recipe = RECIPE, n_pool: int | None = None) -> Path:
    """Train it, from the detector beside it if that is there, and return the folder it was saved in."""
    trained = scratch.parent / "detector" / "model"
    tokenizer = tokens.build(scratch / "tokenizer")
    torch.manual_seed(0)
    model = build(len(tokenizer))
    if trained.exists():
        borrow(model, trained)
    pictures = mixed_pictures(scratch.parent / "pool", *([n_pool] if n_pool else []))
    n = len(pictures)
    which = numbers("train", 0, n)
    all_scenes, kinds = scenes(which), pick(which, "picture", SHARES)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(np.random.default_rng(step).choice(n, size=recipe.batch, replace=recipe.batch > n))
        said = [spoken(all_scenes, i, KINDS[kinds[i]], voice(all_scenes.number[i], "clip", step)) for i in rows]
        ids = tokenizer(said, padding="max_length", max_length=tokens.CONTEXT, truncation=True, return_tensors="pt")
        return loss(model, train_detector.jittered(from_uint8(pictures[rows]).to(device())), ids.input_ids.to(device()))

    train(model, loss_at, recipe, scratch)
    save(model, tokenizer, scratch / "model")
    return scratch / "model"
