import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.models import clip, image_tensors
from emuedit.models.model_files import ModelFileError

TEXTS = ["a small red circle on the left over grass", "two blue stars", "make it yellow " * 40]


def clip_config(tokenizer: Any, **preprocess: Any) -> dict[str, Any]:
    """The open_clip_config.json of a small ViT whose tokenizer is in the same folder."""
    return {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
            "text_cfg": {
                "context_length": 24,
                "vocab_size": len(tokenizer),
                "hf_tokenizer_name": "local",  # any non-empty name: the tokenizer is read from the model's folder
                "width": 16,
                "heads": 2,
                "layers": 2,
                "pool_type": "eos",
                "eos_id": tokenizer.eos_token_id,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.26, 0.27], **preprocess},
    }


def save(folder: Path, config: dict[str, Any], tokenizer: Any) -> Any:
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.CLIP(**config["model_cfg"]).eval()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "preprocess",
    [{}, {"resize_mode": "squash", "interpolation": "bilinear"}, {"resize_mode": "longest", "fill_color": 40}],
)
def test_embeddings_equal_those_of_open_clip(
    preprocess: dict[str, Any], clip_tokenizer: Callable[..., Any], two_images: torch.Tensor, tmp_path: Path
) -> None:
    import open_clip

    tokenizer = clip_tokenizer(24)
    model = save(tmp_path, clip_config(tokenizer, **preprocess), tokenizer)
    scorer = clip.load(str(tmp_path))
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    pixels = torch.stack([transform(image) for image in image_tensors.to_pil(two_images)])
    ours = clip.preprocess(two_images, scorer.preprocess_cfg)
    torch.testing.assert_close(ours, pixels, rtol=0, atol=5 / 255 / 0.25)  # PIL rounds to bytes between its two passes
    with torch.no_grad():
        images = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
        texts = torch.nn.functional.normalize(model.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)), dim=-1)
    embeddings = scorer.embed_images(two_images)
    torch.testing.assert_close(embeddings, images, rtol=0, atol=5e-3)
    torch.testing.assert_close(scorer.embed_texts(TEXTS), texts, rtol=0, atol=1e-6)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))


def test_an_image_of_the_models_size_is_only_normalised(clip_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(24)
    save(tmp_path, clip_config(tokenizer), tokenizer)
    scorer = clip.load(str(tmp_path))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = ((images + 1) / 2 - 0.5) / torch.tensor([0.25, 0.26, 0.27]).view(1, 3, 1, 1)
    torch.testing.assert_close(clip.preprocess(images, scorer.preprocess_cfg), expected, rtol=1e-5, atol=1e-6)


def test_the_tokenizer_is_read_from_the_folder(clip_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(24)
    save(tmp_path, clip_config(tokenizer), tokenizer)
    scorer = clip.load(str(tmp_path))
    tokens = scorer.tokenizer(TEXTS)
    assert tokens.shape == (3, 24)
    assert tokens[0].tolist() == tokenizer(TEXTS[0], padding="max_length", max_length=24).input_ids
    assert tokens[2, -1] == tokenizer.eos_token_id  # a long text is cut and still has its end token


def test_vocab_and_merges_files_give_the_same_tokenizer(
    clip_tokenizer: Callable[..., Any], clip_words: Callable[[int], Any], tmp_path: Path
) -> None:
    tokenizer = clip_tokenizer(24)
    save(tmp_path, clip_config(tokenizer), tokenizer)
    expected = clip.load(str(tmp_path)).embed_texts(TEXTS)
    vocabulary, merges = clip_words(600)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    torch.testing.assert_close(clip.load(str(tmp_path)).embed_texts(TEXTS), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scorer_of_half_precision_has_about_the_same_embeddings(
    dtype: torch.dtype, clip_tokenizer: Callable[..., Any], two_images: torch.Tensor, tmp_path: Path
) -> None:
    """open_clip leaves the class and position embeddings in float32; the first parameter had a dtype that the others refused."""
    tokenizer = clip_tokenizer(24)
    save(tmp_path, clip_config(tokenizer), tokenizer)
    scorer, reference = clip.load(str(tmp_path), dtype=dtype), clip.load(str(tmp_path))
    assert scorer.model.visual.conv1.weight.dtype == dtype
    images, texts = scorer.embed_images(two_images), scorer.embed_texts(TEXTS)
    assert images.dtype == texts.dtype == torch.float32
    torch.testing.assert_close(images, reference.embed_images(two_images), rtol=0, atol=0.03)
    torch.testing.assert_close(texts, reference.embed_texts(TEXTS), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 599}, "the tokenizer has 600 tokens, the text tower 599"),
        ({"eos_id": 2}, "eos_id must be the tokenizer's 599, got 2"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_text_encoder_is_an_error(
    change: dict[str, Any], message: str, clip_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = clip_tokenizer(24)
    config = clip_config(tokenizer)
    config["model_cfg"]["text_cfg"] |= change
    save(tmp_path, config, tokenizer)
    with pytest.raises(ValueError, match=message):
        clip.load(str(tmp_path))


def test_a_config_cannot_run_code_of_the_folder(clip_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    """transformers asks before it runs the code that `auto_map` names, unless the config says `trust_remote_code` itself."""
    tokenizer = clip_tokenizer(24)
    config = clip_config(tokenizer)
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "lower", "trust_remote_code": True}
    save(tmp_path, config, tokenizer)
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nTokenizer = None\n")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}}))
    for load in (clip.load, lambda folder: clip.have_equal_tokens(folder, "a", "b")):
        with pytest.raises(ModelFileError, match=r"tokenizer_kwargs of open_clip_config.json, got trust_remote_code in"):
            load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_options_of_open_clips_tokenizers_are_kept(clip_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(24)
    config = clip_config(tokenizer)
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "lower"}
    save(tmp_path, config, tokenizer)
    assert clip.have_equal_tokens(str(tmp_path), "A RED Circle", "a red circle")


def test_named_weights_choose_their_activation() -> None:
    import open_clip

    assert clip._resolve_name(open_clip, "ViT-L-14/openai") == ("ViT-L-14", "openai", {"force_quick_gelu": True})
    assert clip._resolve_name(open_clip, "ViT-B-32/laion2b_s34b_b79k")[2] == {"force_quick_gelu": False}
    with pytest.raises(ValueError, match=r"want 'ViT-L-14/<tag>' with a tag of openai"):
        clip.load("ViT-L-14/nobody")


@pytest.mark.slow
def test_a_larger_vit_with_a_larger_tokenizer(clip_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(48, size=1000)
    config = clip_config(tokenizer)
    config["model_cfg"]["embed_dim"] = 128
    config["model_cfg"]["vision_cfg"] = {"image_size": 64, "patch_size": 8, "width": 192, "layers": 6}
    config["model_cfg"]["text_cfg"] |= {"context_length": 48, "width": 192, "heads": 3, "layers": 4}
    save(tmp_path, config, tokenizer)
    scorer = clip.load(str(tmp_path))
    assert scorer.embed_images(torch.rand(2, 3, 64, 64) * 2 - 1).shape == (2, 128)
    assert scorer.embed_texts(TEXTS).shape == (3, 128)
    assert scorer.tokenizer(TEXTS).shape == (3, 48)
