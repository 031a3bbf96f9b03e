"""Whole shards on tiny random networks of the architectures for photos: SD 1.5, SDXL, Grounding DINO, Sam and others."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.config import World, load
from emuedit.data.png import decode_png
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.models import sam_builder, segmenter
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import Runtime
from emuedit.stages.pairs import PairsParams
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.recipes import recipes_for
from emuedit.synthesis.shard_maker import make_shard

ROOT = Path(__file__).parents[2]
SIZE = 16
DOG, CAT = "a red dog on grass", "a red cat on grass"
SCORES = {
    "clip_source", "clip_target", "clip_direction", "clip_image", "dino", "depth_l1", "l1_inside", "l1_outside",
    "mask_area", "source_object_after", "target_object_after", "source_object_before", "object_left_in_mask", "shift_px",
}  # fmt: skip
MASK_SCORES = {"l1_inside", "l1_outside", "mask_area"}


def make_instruction(task: str, target: str, *objects: str | None, reverse: bool = False) -> Instruction:
    return Instruction("c0", task, f"{task}!", DOG, target, *objects, reverse, 0, "test", "")


INSTRUCTIONS = [
    make_instruction("local", CAT, "dog", "cat"),
    make_instruction("background", "a red dog on snow", "dog", "snow"),
    make_instruction("add", "a red dog and a cat on grass", None, "cat", reverse=True),
    make_instruction("global", "a red dog on grass at night", None, None),
    make_instruction("detect", DOG + " in a box", "dog", "dog"),
    make_instruction("segment", DOG + " filled with a colour", "dog", "dog"),
    make_instruction("color", DOG, None, "darken"),
    make_instruction("sketch", "a sketch of " + DOG, None, None),
]


def letter_tokenizer() -> Any:
    """CLIP's tokenizer with one token per letter."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=40)


def build_text_encoder(tokenizer: Any, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, projection_dim=20, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def build_pipeline(kind: str, base_model: TextToImageModel) -> Any:
    """A Stable Diffusion 1.5 or XL pipeline with the U-Net and the VAE of a tiny base model."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    tokenizer = letter_tokenizer()
    shared = {"unet": base_model.unet, "vae": base_model.vae, "scheduler": base_model.scheduler, "tokenizer": tokenizer}
    shared["text_encoder"] = build_text_encoder(tokenizer)
    if kind == "sdxl":
        return StableDiffusionXLPipeline(
            **shared, text_encoder_2=build_text_encoder(tokenizer, projected=True), tokenizer_2=tokenizer, add_watermarker=False
        )
    return StableDiffusionPipeline(**shared, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def save_grounding_dino(folder: Path) -> None:
    import transformers

    names = [f"[unused{i}]" for i in range(1100)]  # the network knows [CLS] [SEP] . ? by their ids in BERT
    bert_ids = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029, "dog": 1040, "cat": 1041}
    for token, token_id in bert_ids.items():
        names[token_id] = token
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
    image_processor = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    tokenizer = transformers.BertTokenizer(vocab={name: i for i, name in enumerate(names)})
    transformers.GroundingDinoProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


def save_segment_anything(folder: Path) -> None:
    config = sam_builder.SamConfig(
        encoder_width=16, encoder_depth=2, encoder_heads=2, global_attn_indexes=(1,), image_size=64, patch_size=8,
        window_size=3, prompt_embed_dim=16, decoder_heads=2, decoder_mlp_dim=32, iou_head_hidden_dim=16,
    )  # fmt: skip
    model = sam_builder.build(config).eval()
    torch.nn.init.normal_(model.image_encoder.pos_embed)  # with zeros a random Sam gives flat masks
    segmenter.Segmenter(model, config).save(folder)


def save_open_clip(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    tokenizer = letter_tokenizer()
    text = {
        "context_length": 40, "vocab_size": len(tokenizer), "hf_tokenizer_name": "local", "width": 16, "heads": 2, "layers": 2,
    }  # fmt: skip
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
        "text_cfg": text | {"pool_type": "eos", "eos_id": tokenizer.eos_token_id},
    }
    tokenizer.save_pretrained(folder)
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")


def save_dinov2(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


def save_depth_anything(folder: Path) -> None:
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
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folders of all models but the base model."""
    root, folders = tmp_path_factory.mktemp("models"), {}
    savers: dict[str, Callable[[Path], None]] = {
        "detector": save_grounding_dino,
        "segmenter": save_segment_anything,
        "clip": save_open_clip,
        "dino": save_dinov2,
        "depth": save_depth_anything,
    }
    for name, save in savers.items():
        (root / name).mkdir()
        torch.manual_seed(11)  # with most seeds the random Sam selects all pixels or none; with this one it selects a part
        save(root / name)
        folders[name] = str(root / name)
    return folders


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def world(
    request: pytest.FixtureRequest,
    model_folders: dict[str, str],
    make_base_model: Callable[..., TextToImageModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    folder = str(tmp_path_factory.mktemp(request.param))
    base_model = make_base_model(request.param)
    torch.manual_seed(4)
    build_pipeline(request.param, base_model).save_pretrained(folder)
    references = model_folders | {"base_model": folder, "annotators": "emuedit/annotators/photo_annotators.py"}
    return load(PairsParams, "pairs", ROOT / "params.yaml").world.model_copy(update=references)


def make_pairs(world: World, instructions: list[Instruction], empty_masks: bool = False) -> tuple[list[Pair], list[Drop]]:
    """All candidates. With `empty_masks` the segmenter finds no object, so M = 0 everywhere."""
    loose = {"detector_threshold": 0.0, "min_area": 0.0, "max_area": 1.0}  # random networks detect anything anywhere
    quick = {"world": world, "steps": 2, "rows_per_batch": 6}
    params = load(PairsParams, "pairs", ROOT / "params.yaml").model_copy(update=loose | quick)
    models = ModelSet(world, ROOT, Runtime("cpu", "float32"))
    if empty_masks:
        models.segmenter.model.mask_threshold = float("inf")
    return make_shard(instructions, models, params, Counter())


@pytest.mark.slow
def test_a_shard_is_complete_and_reproducible(world: World) -> None:
    pairs, drops = make_pairs(world, INSTRUCTIONS)
    assert not drops
    recipes = load(PairsParams, "pairs", ROOT / "params.yaml").recipes
    n_candidates = {instruction.task: len(recipes_for(recipes, instruction.task)) or 1 for instruction in INSTRUCTIONS}
    assert Counter(pair.task for pair in pairs) == n_candidates
    for pair in pairs:
        source, target = decode_png(pair.source), decode_png(pair.target)
        assert source.shape == target.shape == (SIZE, SIZE, 3)
        assert source.std() > 1
        assert (source != target).any()
        assert (pair.mask is not None) == (pair.task in ("local", "background", "add"))
        assert set(pair.scores) == SCORES
        defined = {name: score for name, score in pair.scores.items() if score is not None}
        assert np.isfinite(list(defined.values())).all()
        assert {"clip_source", "clip_target", "clip_image", "dino", "depth_l1"} <= set(defined)
        if pair.mask is None:
            assert not MASK_SCORES & set(defined)
        else:
            M = decode_png(pair.mask) / 255
            assert M.shape == (SIZE, SIZE)
            assert 0 < defined["mask_area"] < 1
            assert defined["mask_area"] == pytest.approx(M.mean(), abs=1 / 255)
    assert make_pairs(world, INSTRUCTIONS)[0] == pairs


@pytest.mark.slow
def test_nothing_changes_where_m_is_zero(world: World) -> None:
    pairs, drops = make_pairs(world, INSTRUCTIONS[:1], empty_masks=True)
    assert pairs
    assert not drops
    for pair in pairs:
        assert pair.scores["mask_area"] == 0
        assert pair.scores["l1_inside"] is None
        change = np.abs(decode_png(pair.source).astype(int) - decode_png(pair.target))
        assert change.max() <= 1  # the decoder rounds differently in another batch
