import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.models import clip, image_tensors

TEXTS = ["a small red circle on the left over grass", "two blue stars", "make it yellow " * 40]


def clip_config(tokenizer: Any, **preprocess: Any) -> dict[str, Any]:
    """The open_clip_config.json of a small ViT with a tokenizer of its own beside it."""
    return {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
            "text_cfg": {
                "context_length": 24,
                "vocab_size": len(tokenizer),
                "hf_tokenizer_name": "local",  # any non-empty name: the files are read from this folder
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
def test_embeddings_are_open_clips_own(
    preprocess: dict[str, Any], clip_tokenizer: Callable[..., Any], pictures: torch.Tensor, tmp_path: Path
) -> None:
    import open_clip

    tokenizer = clip_tokenizer(24)
    model = save(tmp_path, clip_config(tokenizer, **preprocess), tokenizer)
    judge = clip.load(str(tmp_path))
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    shown = torch.stack([transform(picture) for picture in image_tensors.to_pil(pictures)])
    ours = clip.preprocess(pictures, judge.preprocess_cfg)
    torch.testing.assert_close(ours, shown, rtol=0, atol=5 / 255 / 0.25)  # PIL rounds to bytes between its two passes
    with torch.no_grad():
        images = torch.nn.functional.normalize(model.encode_image(shown), dim=-1)
        texts = torch.nn.functional.normalize(model.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)), dim=-1)
    got = judge.embed_images(pictures)
    torch.testing.assert_close(got, images, rtol=0, atol=5e-3)
    torch.testing.assert_close(judge.embed_texts(TEXTS), texts, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(2))


def test_a_picture_of_the_models_size_is_only_normalised(clip_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(24)
    save(tmp_path, clip_config(tokenizer), tokenizer)
    judge = clip.load(str(tmp_path))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    want = ((images + 1) / 2 - 0.5) / torch.tensor([0.25, 0.26, 0.27]).view(1, 3, 1, 1)
    torch.testing.assert_close(clip.preprocess(images, judge.preprocess_cfg), want, rtol=1e-5, atol=1e-6)


def test_the_small_tokenizer_is_the_one_in_the_folder(clip_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(24)
    save(tmp_path, clip_config(tokenizer), tokenizer)
    judge = clip.load(str(tmp_path))
    tokens = judge.tokenizer(TEXTS)
    assert tokens.shape == (3, 24)
    assert tokens[0].tolist() == tokenizer(TEXTS[0], padding="max_length", max_length=24).input_ids
    assert tokens[2, -1] == tokenizer.eos_token_id  # a long text is cut and still ended


def test_vocab_and_merges_files_serve_as_well(
    clip_tokenizer: Callable[..., Any], clip_words: Callable[[int], Any], tmp_path: Path
) -> None:
    tokenizer = clip_tokenizer(24)
    save(tmp_path, clip_config(tokenizer), tokenizer)
    want = clip.load(str(tmp_path)).embed_texts(TEXTS)
    vocabulary, merges = clip_words(600)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    torch.testing.assert_close(clip.load(str(tmp_path)).embed_texts(TEXTS), want)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 599}, "the tokenizer has 600 tokens and the text tower 599"),
        ({"eos_id": 2}, "eos_id must be the tokenizer's 599, got 2"),
    ],
)
def test_a_text_tower_that_does_not_fit_its_tokenizer_is_named(
    change: dict[str, Any], says: str, clip_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = clip_tokenizer(24)
    config = clip_config(tokenizer)
    config["model_cfg"]["text_cfg"] |= change
    save(tmp_path, config, tokenizer)
    with pytest.raises(ValueError, match=says):
        clip.load(str(tmp_path))


def test_named_weights_bring_their_activation() -> None:
    import open_clip

    assert clip._name(open_clip, "ViT-L-14/openai") == ("ViT-L-14", "openai", {"force_quick_gelu": True})
    assert clip._name(open_clip, "ViT-B-32/laion2b_s34b_b79k")[2] == {"force_quick_gelu": False}
    with pytest.raises(ValueError, match=r"want 'ViT-L-14/<tag>' with a tag of openai"):
        clip.load("ViT-L-14/nobody")


def test_a_small_vit_with_a_small_tokenizer_at_its_full_size(clip_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(48, size=1000)
    config = clip_config(tokenizer)
    config["model_cfg"]["embed_dim"] = 128
    config["model_cfg"]["vision_cfg"] = {"image_size": 64, "patch_size": 8, "width": 192, "layers": 6}
    config["model_cfg"]["text_cfg"] |= {"context_length": 48, "width": 192, "heads": 3, "layers": 4}
    save(tmp_path, config, tokenizer)
    judge = clip.load(str(tmp_path))
    assert judge.embed_images(torch.rand(2, 3, 64, 64) * 2 - 1).shape == (2, 128)
    assert judge.embed_texts(TEXTS).shape == (3, 128)
    assert judge.tokenizer(TEXTS).shape == (3, 48)
