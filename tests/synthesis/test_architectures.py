"""The heart of `pairs` whole, on small random networks of the architectures that real worlds are made of."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.config import World, load
from emuedit.data.png import decode_png
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.models import sam_builder, segmenter
from emuedit.runtime import Runtime
from emuedit.stages.pairs import Params
from emuedit.synthesis.candidate import make_shard
from emuedit.synthesis.model_set import ModelSet

ROOT = Path(__file__).parents[2]
SIZE = 16
DOG, CAT = "a red dog on grass", "a red cat on grass"
SCORES = {
    "clip_source", "clip_target", "clip_direction", "clip_image", "dino", "depth_l1", "l1_inside", "l1_outside",
    "mask_area", "present_source", "present_target", "found_source", "left_inside", "shift_px",
}  # fmt: skip
OF_A_MASK = {"l1_inside", "l1_outside", "mask_area"}


def instruction(task: str, target: str, *objects: str | None, reverse: bool = False) -> Instruction:
    return Instruction("c0", task, f"{task}!", DOG, target, *objects, reverse, 0, "test", "")


WORK = [
    instruction("local", CAT, "dog", "cat"),
    instruction("background", "a red dog on snow", "dog", "snow"),
    instruction("add", "a red dog and a cat on grass", None, "cat", reverse=True),
    instruction("global", "a red dog on grass at night", None, None),
    instruction("detect", DOG + " in a box", "dog", "dog"),
    instruction("segment", DOG + " painted over", "dog", "dog"),
    instruction("color", DOG, None, "darken"),
    instruction("sketch", "a sketch of " + DOG, None, None),
]


def letters() -> Any:
    """CLIP's tokenizer, a token a letter."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(one + "</w>" for one in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=40)


def text_encoder(tokenizer: Any, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, projection_dim=20, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def pipeline(kind: str, parts: Any) -> Any:
    """Stable Diffusion 1.5 or XL around the U-Net and VAE of a small base_model."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    tokenizer = letters()
    shared = {"unet": parts.unet, "vae": parts.vae, "scheduler": parts.scheduler, "tokenizer": tokenizer}
    shared["text_encoder"] = text_encoder(tokenizer)
    if kind == "sdxl":
        return StableDiffusionXLPipeline(
            **shared, text_encoder_2=text_encoder(tokenizer, projected=True), tokenizer_2=tokenizer, add_watermarker=False
        )
    return StableDiffusionPipeline(**shared, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def grounding_dino(folder: Path) -> None:
    import transformers

    names = [f"[unused{i}]" for i in range(1100)]  # the network knows [CLS] [SEP] . ? by BERT's own ids
    for token, place in {
        "[PAD]": 0,
        "[UNK]": 100,
        "[CLS]": 101,
        "[SEP]": 102,
        ".": 1012,
        "?": 1029,
        "dog": 1040,
        "cat": 1041,
    }.items():
        names[place] = token
    backbone = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=2,
        out_features=["stage2", "stage3"], out_indices=None,
    )  # fmt: skip
    text = transformers.BertConfig(
        vocab_size=len(names), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=12, num_feature_levels=3,
        encoder_n_points=2, decoder_n_points=2, max_text_len=24, use_pretrained_backbone=False,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    shown = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    words = transformers.BertTokenizer(vocab={name: i for i, name in enumerate(names)})
    transformers.GroundingDinoProcessor(image_processor=shown, tokenizer=words).save_pretrained(folder)


def segment_anything(folder: Path) -> None:
    config = sam_builder.SamConfig(
        encoder_width=16, encoder_depth=2, encoder_heads=2, global_attn_indexes=(1,), image_size=64, patch_size=8,
        window_size=3, prompt_embed_dim=16, decoder_heads=2, decoder_mlp_dim=32, iou_head_hidden_dim=16,
    )  # fmt: skip
    model = sam_builder.build(config).eval()
    torch.nn.init.normal_(model.image_encoder.pos_embed)  # else a random Sam gives flat masks
    segmenter.Segmenter(model, config).save(folder)


def open_clip(folder: Path) -> None:
    import open_clip as library
    from safetensors.torch import save_file

    tokenizer = letters()
    text = {
        "context_length": 40,
        "vocab_size": len(tokenizer),
        "hf_tokenizer_name": "local",
        "width": 16,
        "heads": 2,
        "layers": 2,
    }
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
        "text_cfg": text | {"pool_type": "eos", "eos_id": tokenizer.eos_token_id},
    }
    tokenizer.save_pretrained(folder)
    shown = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": shown}))
    save_file(library.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")


def dinov2(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


def depth_anything(folder: Path) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    stages = {"out_features": [f"stage{n}" for n in range(1, 5)], "reshape_hidden_states": False, "apply_layernorm": True}
    backbone = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7, **stages)
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "head_hidden_size": 8}
    model = DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, patch_size=7, **sizes))
    with torch.no_grad():  # a random network's map is flat, and the last ReLU may leave it all 0
        model.head.conv3.weight.mul_(1000)
        model.head.conv3.bias.fill_(1.0)
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=7).save_pretrained(folder)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folders of all but the base_model."""
    root, folders = tmp_path_factory.mktemp("judges"), {}
    makers = {
        "detector": grounding_dino,
        "segmenter": segment_anything,
        "clip": open_clip,
        "dino": dinov2,
        "depth": depth_anything,
    }
    for name, make in makers.items():
        (root / name).mkdir()
        torch.manual_seed(11)  # most random Sams take all or nothing; this one some
        make(root / name)
        folders[name] = str(root / name)
    return folders


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def world(request: pytest.FixtureRequest, judges: dict[str, str], painted_by: Any, tmp_path_factory: Any) -> World:
    folder = str(tmp_path_factory.mktemp(request.param))
    small = painted_by(request.param)
    torch.manual_seed(4)
    pipeline(request.param, small.pipeline).save_pretrained(folder)
    named = judges | {"base_model": folder, "annotators": "emuedit/annotators/photo_annotators.py"}
    return load(Params, "pairs", ROOT / "params.yaml").world.model_copy(update=named)


def make(world: World, some: list[Instruction], blind: bool = False) -> tuple[list[Pair], list[Drop]]:
    """Every candidate; `blind`: the segmenter sees no object, so M = 0."""
    loose = {"detector_threshold": 0.0, "min_area": 0.0, "max_area": 1.0}  # random networks find anything anywhere
    knobs = load(Params, "pairs", ROOT / "params.yaml").model_copy(
        update=loose | {"world": world, "steps": 2, "rows_per_batch": 6}
    )
    models = ModelSet(world, ROOT, Runtime("cpu", "float32"), knobs.steps)
    if blind:
        models.segmenter.model.mask_threshold = float("inf")
    return make_shard(some, models, knobs, Counter())


def test_a_shard_is_made_whole_and_the_same_again(world: World) -> None:
    pairs, drops = make(world, WORK)
    assert not drops
    recipes = load(Params, "pairs", ROOT / "params.yaml").recipes
    assert Counter(one.task for one in pairs) == {one.task: len(recipes.of(one.task)) or 1 for one in WORK}
    for one in pairs:
        source, target = decode_png(one.source), decode_png(one.target)
        assert source.shape == target.shape == (SIZE, SIZE, 3)
        assert source.std() > 1
        assert (source != target).any()
        assert (one.mask is not None) == (one.task in ("local", "background", "add"))
        assert set(one.scores) == SCORES
        told = {name: score for name, score in one.scores.items() if score is not None}
        assert np.isfinite(list(told.values())).all()
        assert {"clip_source", "clip_target", "clip_image", "dino", "depth_l1"} <= set(told)
        if one.mask is None:
            assert not OF_A_MASK & set(told)
        else:
            M = decode_png(one.mask) / 255
            assert M.shape == (SIZE, SIZE)
            assert 0 < told["mask_area"] < 1
            assert told["mask_area"] == pytest.approx(M.mean(), abs=1 / 255)
    assert make(world, WORK)[0] == pairs


def test_nothing_changes_where_m_is_zero(world: World) -> None:
    pairs, drops = make(world, WORK[:1], blind=True)
    assert pairs
    assert not drops
    for one in pairs:
        assert one.scores["mask_area"] == 0
        assert one.scores["l1_inside"] is None
        off = np.abs(decode_png(one.source).astype(int) - decode_png(one.target))
        assert off.max() <= 1  # the decoder rounds differently in another batch
