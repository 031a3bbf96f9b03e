import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx2
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from emuedit import reference_check
from emuedit.annotators import semantic_segmentation
from emuedit.failures import FailureKind, kind_of
from emuedit.models import clip, depth, detector, dino, local_llm, model_sources, segmenter, text_to_image
from emuedit.predictor import task_predictor

LOADERS = {
    "base_model": text_to_image.load,
    "detector": detector.load,
    "segmenter": segmenter.load,
    "clip": clip.load,
    "dino": dino.load,
    "depth": depth.load,
    "llm": local_llm.load,
}


@pytest.mark.slow
def test_importing_the_adapters_imports_no_heavy_library() -> None:
    code = (
        "import sys, emuedit.models.clip, emuedit.models.depth, emuedit.models.detector, emuedit.models.dino, "
        "emuedit.models.llm_loading, emuedit.models.text_to_image, emuedit.models.segmenter\n"
        "heavy = {'diffusers', 'transformers', 'open_clip', 'segment_anything', 'torchvision', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def write_folder(path: Path, file: str, **content: str) -> Path:
    """A model folder with a manifest file and empty weights."""
    path.mkdir()
    (path / file).write_text(json.dumps(content))
    (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_folder_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"want .* got .*nowhere"):
        LOADERS[name](str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", LOADERS)
def test_an_empty_folder_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="an empty folder"):
        LOADERS[name](str(tmp_path))


def test_a_folder_of_the_wrong_kind_is_an_error(tmp_path: Path) -> None:
    owl = write_folder(tmp_path / "owl", "config.json", model_type="owlvit")
    with pytest.raises(FileNotFoundError, match=r"want a diffusers .*model_index\.json.* got .*zero-shot detector"):
        text_to_image.load(str(owl))
    with pytest.raises(ValueError, match=r"want a transformers ViT .*dinov2.* got .*model_type 'owlvit'"):
        dino.load(str(owl))
    upscaler = write_folder(tmp_path / "up", "model_index.json", _class_name="StableDiffusionUpscalePipeline")
    with pytest.raises(ValueError, match=r"want .*StableDiffusionXLPipeline.* got .*StableDiffusionUpscalePipeline"):
        text_to_image.load(str(upscaler))


def test_a_single_file_in_place_of_a_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative name looks like a hub id, and the message was about the network and the login."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    for name, advice in (("dream.safetensors", "a single-file checkpoint .*from_single_file"), ("config.json", "folder")):
        (tmp_path / "weights" / name).write_bytes(b"")
        with pytest.raises(FileNotFoundError, match=f"want a diffusers .* got the file 'weights/{name}'; .*{advice}"):
            text_to_image.load(f"weights/{name}")
        (problem,) = reference_check.problems({"world": {"base_model": f"weights/{name}"}}, {}, tmp_path)
        assert re.match(f"world.base_model: want a folder or hub id, got the file 'weights/{name}'; .*{advice}", problem)


def test_pickled_weights_are_an_error(tmp_path: Path) -> None:
    vit = write_folder(tmp_path / "vit", "config.json", model_type="vit")
    (vit / "model.safetensors").rename(vit / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        dino.load(str(vit))


def test_a_hub_id_that_does_not_exist_is_no_failure_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a stage was tried again three times, over six minutes."""
    answer = httpx2.Response(404, request=httpx2.Request("HEAD", "https://huggingface.co/owner/name"))

    def raise_error(*args: object, **kwargs: object) -> str:
        raise RepositoryNotFoundError("404 Client Error", response=answer)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", raise_error)
    with pytest.raises(FileNotFoundError, match=r"got 'owner/name'.*RepositoryNotFoundError") as error:
        model_sources.read_manifest("owner/name", model_sources.DEPTH)
    assert kind_of(error.value) is FailureKind.OTHER


def test_a_hub_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(name: str, *args: object, **kwargs: object) -> str:
        raise ConnectionError(name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", raise_error)
    with pytest.raises(FileNotFoundError, match=r"owner/name.*ConnectionError"):
        model_sources.read_manifest("owner/name", model_sources.DEPTH)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_repository_of_the_wrong_kind_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    manifest = write_folder(tmp_path / "hub", "config.json", model_type="bert") / "config.json"
    requests: list[object] = []

    def download(*args: object, revision: object) -> str:
        requests.append((*args, revision))
        return str(manifest)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for name in ("owner/name", f"owner/name@{COMMIT}"):
        with pytest.raises(ValueError, match=f"got '{name}' with model_type 'bert'"):
            depth.load(name)
    assert requests == [("owner/name", "config.json", None), ("owner/name", "config.json", COMMIT)]


@pytest.mark.parametrize("name", ["owner/name@main", "owner/name@0123456", f"name@{COMMIT}"])
def test_a_hub_id_is_pinned_by_a_whole_commit(name: str) -> None:
    assert model_sources.split_revision(name) == (name, None)
    with pytest.raises(FileNotFoundError, match=re.escape(f"'owner/name@<commit>', all 40 digits), got '{name}'")):
        depth.load(name)


def test_a_folder_whose_name_looks_like_a_pinned_hub_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"owner/name@{COMMIT}"
    assert model_sources.split_revision(name) == ("owner/name", COMMIT)
    Path(name).mkdir(parents=True)
    assert model_sources.split_revision(name) == (name, None)


@pytest.mark.parametrize(
    ("load", "library", "classes"),
    [
        (dino.load, "transformers", ["AutoModel", "AutoImageProcessor"]),
        (depth.load, "transformers", ["AutoModelForDepthEstimation", "AutoImageProcessor"]),
        (detector.load, "transformers", ["AutoModelForZeroShotObjectDetection", "AutoProcessor"]),
        (local_llm.load, "transformers", ["AutoModelForCausalLM", "AutoTokenizer"]),
        (text_to_image.load, "diffusers", ["StableDiffusionPipeline"]),
        (lambda name: semantic_segmentation.load(name, "cpu"), "transformers",
         ["AutoModelForSemanticSegmentation", "AutoImageProcessor"]),
        (lambda name: task_predictor.from_t5(name, ("local", "add"), 8), "transformers",
         ["AutoModelForSequenceClassification", "AutoTokenizer"]),
    ],
    ids=["dino", "depth", "detector", "llm", "base_model", "segmap", "t5"],
)  # fmt: skip
def test_every_part_of_a_pinned_model_is_loaded_at_its_commit(
    load: Any, library: str, classes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[tuple[str, str, object]] = []
    module = model_sources.import_library(library)
    for name in classes:

        def from_pretrained(repository: str, *, name: str = name, revision: str | None = None, **_: object) -> MagicMock:
            requests.append((name, repository, revision))
            return MagicMock()

        monkeypatch.setattr(getattr(module, name), "from_pretrained", from_pretrained)
    manifest = {"_class_name": "StableDiffusionPipeline"}
    monkeypatch.setattr(model_sources, "read_manifest", lambda name, kind: manifest)
    with contextlib.suppress(TypeError, ValueError, AttributeError):  # a mock is no network
        load(f"owner/name@{COMMIT}")
    assert requests == [(name, "owner/name", COMMIT) for name in classes]


def test_a_pinned_clip_is_opened_from_the_folder_of_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """open_clip itself only knows the newest version of a repository."""
    monkeypatch.setattr(model_sources, "read_manifest", lambda name, kind: {})
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, revision, allow_patterns: str(tmp_path / name / revision)
    )
    open_clip = model_sources.import_library("open_clip")
    assert clip._resolve_name(open_clip, "owner/name") == ("hf-hub:owner/name", None, {})
    pinned, _, _ = clip._resolve_name(open_clip, f"owner/name@{COMMIT}")
    assert pinned == f"local-dir:{tmp_path}/owner/name/{COMMIT}"
