"""Doors of models: folders as a copy, a download or a clone without Git LFS leaves them. One line per case."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from emuedit import cli, reference_check
from emuedit.models import clip, depth, detector, dino, model_files, segmenter, text_to_image
from emuedit.models.model_files import MissingModelError, ModelFileError
from tests.repository import ROOT

WEIGHTS = ROOT / "toyworld/weights"
LOADERS: dict[str, Callable[[str], object]] = {
    "base_model": text_to_image.load, "clip": clip.load, "dino": dino.load, "depth": depth.load,
    "detector": detector.load, "segmenter": segmenter.load,
}  # fmt: skip


def make_pointer(file: Path) -> None:
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4265380512\n")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 8)


def make_empty(file: Path) -> None:
    file.write_bytes(b"")


def make_login_page(file: Path) -> None:
    file.write_text("<!doctype html><html>Access to this repository needs a login</html>" * 10)


UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
DAMAGED: dict[str, tuple[str, str, Callable[[Path], None], str]] = {
    "a clone without Git LFS (diffusers 6713)": ("base_model", UNET, make_pointer, f"{UNET}: a Git LFS pointer; run `git lfs"),
    "a download that ended early (airllm 137)": ("base_model", UNET, cut, r"unet/.*: \d+ bytes, want \d+"),
    "a download that was continued wrongly": ("base_model", UNET, lengthen, r"unet/.*: \d+ bytes, want \d+"),
    "a disk that was full": ("base_model", UNET, make_empty, f"{UNET}: empty"),
    "a login page in place of weights": ("base_model", UNET, make_login_page, f"{UNET}: not a safetensors file"),
    "weights that are missing": ("base_model", TEXT, Path.unlink, r"text_encoder: no \*\.safetensors weights"),
    "half a config": ("base_model", "unet/config.json", cut, "unet/config.json: not JSON, or truncated"),
    "no config": ("base_model", "text_encoder/config.json", Path.unlink, "text_encoder: no config"),
    "no schedule": ("base_model", "scheduler/scheduler_config.json", Path.unlink, "scheduler: no config"),
    "no vocabulary, without which an empty one is made": (
        "base_model", "tokenizer/tokenizer.json", Path.unlink, "tokenizer/tokenizer_config.json: no tokenizer.json"
    ),
    "half an index": ("base_model", "model_index.json", cut, "model_index.json: not JSON"),
    "CLIP's weights": ("clip", "open_clip_model.safetensors", make_pointer, "open_clip_model.safetensors: a Git LFS pointer"),
    "CLIP's vocabulary": ("clip", "tokenizer.json", Path.unlink, "no tokenizer.json or another vocabulary next to it"),
    "DINO's weights": ("dino", "model.safetensors", cut, r"model.safetensors: \d+ bytes, want"),
    "DINO's preprocessing": ("dino", "preprocessor_config.json", Path.unlink, "and preprocessor_config.json, got .* without"),
    "the depth model's config": ("depth", "config.json", make_empty, "config.json: empty"),
    "the detector's vocabulary": ("detector", "tokenizer.json", cut, "tokenizer.json: not JSON, or truncated"),
    "the segmenter's weights": ("segmenter", "model.safetensors", make_login_page, "model.safetensors: not a safetensors"),
}  # fmt: skip


def copy_damaged(case: str, folder: Path) -> str:
    """The folder `models` below the given one, with one file damaged; returns the role of the model."""
    role, name, damage, _ = DAMAGED[case]
    shutil.copytree(WEIGHTS / role, folder / "models")
    damage(folder / "models" / name)
    return role


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_told_with_the_file_before_it_is_loaded(case: str, tmp_path: Path) -> None:
    role = copy_damaged(case, tmp_path)
    with pytest.raises((ModelFileError, MissingModelError), match=DAMAGED[case][3]):
        LOADERS[role](str(tmp_path / "models"))


@pytest.mark.parametrize("case", ["a clone without Git LFS (diffusers 6713)", "half a config", "no schedule"])
def test_it_is_told_before_the_first_stage(case: str, tmp_path: Path) -> None:
    role = copy_damaged(case, tmp_path)
    (line,) = reference_check.problems({"world": {role: "models"}}, {}, tmp_path)
    assert line.startswith(f"world.{role}: models/")
    assert DAMAGED[case][3] in line


def test_a_damaged_editor_is_told_with_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(WEIGHTS / "base_editor", tmp_path / "editor", ignore=shutil.ignore_patterns("replay"))
    (tmp_path / "editor/model_index.json").write_text("{")
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png")
    assert (
        cli.main(["edit", str(tmp_path / "in.png"), "make it red", "--task", "local", "--model", str(tmp_path / "editor")]) == 2
    )
    assert "model_index.json: not JSON, or truncated; copy or download the folder again" in capsys.readouterr().err


def test_weights_that_are_only_a_variant_are_named(tmp_path: Path) -> None:
    """`open_pipeline` names no variant, so diffusers would find no weights, after the instructions were written."""
    shutil.copytree(WEIGHTS / "base_model", tmp_path / "models")
    unet = tmp_path / "models/unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    (problem,) = model_files.problems(tmp_path / "models")
    assert problem.startswith(
        "unet/diffusion_pytorch_model.fp16.safetensors: want diffusion_pytorch_model.safetensors, got only a"
    )
    (line,) = reference_check.problems({"world": {"base_model": "models"}}, {}, tmp_path)
    assert problem in line
    shutil.copytree(WEIGHTS / "dino", tmp_path / "dino")
    (tmp_path / "dino/model.safetensors").rename(tmp_path / "dino/model.fp16-00001-of-00002.safetensors")
    with pytest.raises(ModelFileError, match=r"want model-00001-of-00002\.safetensors, got only a variant"):
        dino.load(str(tmp_path / "dino"))


def write_transformer(folder: Path, **files: dict[str, object]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name.replace('__', '.')}.json").write_text(json.dumps(content))
    return folder


def test_shards_that_an_index_names_must_be_there(tmp_path: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    folder = write_transformer(tmp_path / "llm", model__safetensors__index={"weight_map": shards})
    shutil.copy(WEIGHTS / "dino/model.safetensors", folder / shards["a"])
    assert list(model_files.problems(folder)) == [f"model.safetensors.index.json: names {shards['b']}, which is missing"]
    shutil.copy(WEIGHTS / "dino/model.safetensors", folder / shards["b"])
    assert list(model_files.problems(folder)) == []


def test_a_tokenizer_of_bytes_needs_no_vocabulary(tmp_path: Path) -> None:
    byt5 = write_transformer(tmp_path / "byt5", tokenizer_config={"tokenizer_class": "ByT5Tokenizer"})
    t5 = write_transformer(tmp_path / "t5", tokenizer_config={"tokenizer_class": "T5Tokenizer"})
    assert list(model_files.problems(byt5)) == []
    assert list(model_files.problems(t5)) == ["tokenizer_config.json: no tokenizer.json or another vocabulary next to it"]
    (t5 / "spiece.model").touch()
    assert list(model_files.problems(t5)) == []


@pytest.mark.parametrize("folder", sorted(path.name for path in WEIGHTS.iterdir() if path.is_dir()))
def test_the_models_that_come_with_the_project_are_whole(folder: str) -> None:
    assert list(model_files.problems(WEIGHTS / folder)) == []


def test_what_is_never_loaded_may_be_missing_or_damaged(tmp_path: Path) -> None:
    """People delete the safety checker of SD1.5, 1.2 GB; its index still names it. `git lfs pull --include` leaves pointers."""
    shutil.copytree(WEIGHTS / "base_model", tmp_path / "models")
    for name in ("v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/._config.json"):
        make_pointer(tmp_path / "models" / name)
    index = json.loads((tmp_path / "models/model_index.json").read_text())
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (tmp_path / "models/model_index.json").write_text(json.dumps(index | {"safety_checker": checker}))
    assert list(model_files.problems(tmp_path / "models")) == []
