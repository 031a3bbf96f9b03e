"""Models of the wrong kind, and models of the hub that may not be downloaded, are named before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RemoteEntryNotFoundError

from emuedit import cli
from emuedit.worlds import model_access
from emuedit.worlds.photo_world import MODELS, PRESETS
from tests.repository import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MANIFESTS = {
    "owner/base": {"_class_name": "StableDiffusionPipeline"}, "owner/dinov3": {"model_type": "dinov3_vit"},
    "owner/depth": {"model_type": "depth_anything"},
    "owner/metric": {"model_type": "depth_anything", "depth_estimation_type": "metric"},
}  # fmt: skip


WEIGHTS = {
    "owner/base": [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae", "text_encoder")],
    "owner/depth": ["config.json", "model-00001-of-00002.safetensors"],
    "owner/pickled": ["config.json", "pytorch_model.bin", "onnx/model.safetensors"],
    "owner/half": [*(f"{part}/model.fp16.safetensors" for part in ("unet", "vae", "text_encoder")), "v1-5.safetensors"],
}


def gated(name: str) -> GatedRepoError:
    answer = httpx2.Response(403, request=httpx2.Request("HEAD", f"https://huggingface.co/{name}"))
    return GatedRepoError(f"403 Client Error: access to {name} is restricted", response=answer)


@pytest.fixture
def ask_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], list[str]]:
    """Sets the manifests of the hub's repositories, or the errors that it returns; gives the list of requested addresses."""

    def set_answers(manifests: dict[str, Any]) -> list[str]:
        requests: list[str] = []

        def metadata(url: str) -> None:
            requests.append(url.removeprefix("https://huggingface.co/"))
            if isinstance(content := manifests["/".join(url.split("/")[3:5])], Exception):
                raise content

        def download(name: str, file: str, revision: str | None) -> str:
            (tmp_path / file).write_text(json.dumps(manifests[name]))
            return str(tmp_path / file)

        class Hub:
            def model_info(self, name: str, revision: str | None, timeout: float) -> Any:
                return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in WEIGHTS[name]])

        monkeypatch.setattr("huggingface_hub.HfApi", Hub)
        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", metadata)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        return requests

    return set_answers


def test_gated_and_wrong_models_of_the_hub_are_named(ask_hub: Any, tmp_path: Path) -> None:
    """The page and the commit of a gated model are public; the stage pairs failed, after thousands of requests to the LLM."""
    requests = ask_hub(MANIFESTS | {"owner/llm": gated("owner/llm")})
    models = {
        "base_model": f"owner/base@{COMMIT}", "dino": "owner/dinov3", "depth": "owner/depth", "llm": f"owner/llm@{COMMIT}",
        "clip": "ViT-L-14/openai", "segmenter": "sam.pth",
    }  # fmt: skip
    problems, note = model_access.check(models, tmp_path)
    assert [problem.partition(":")[0] for problem in problems] == ["world.dino", "world.llm"]
    assert "'owner/dinov3' with model_type 'dinov3_vit'" in problems[0]
    assert "accept its licence at https://huggingface.co/owner/llm, then run `hf auth login` or set HF_TOKEN" in problems[1]
    assert not note
    assert sorted(requests) == [
        f"owner/base/resolve/{COMMIT}/model_index.json", "owner/depth/resolve/main/config.json",
        "owner/dinov3/resolve/main/config.json", f"owner/llm/resolve/{COMMIT}/config.json",
    ]  # fmt: skip


def test_repositories_without_usable_weights_are_named(ask_hub: Any, tmp_path: Path) -> None:
    ask_hub({"owner/pickled": {"model_type": "vit"}, "owner/half": MANIFESTS["owner/base"]})
    problems, _ = model_access.check({"base_model": "owner/half", "dino": f"owner/pickled@{COMMIT}"}, tmp_path)
    assert "weights unet/*.safetensors without a variant such as fp16, got 'owner/half' without them" in problems[0]
    assert f"weights *.safetensors without a variant such as fp16, got 'owner/pickled@{COMMIT}'" in problems[1]


def test_a_file_that_a_repository_does_not_have_is_named(ask_hub: Any, tmp_path: Path) -> None:
    """Such as weights of transformers in place of those of open_clip."""
    answer = httpx2.Response(404, request=httpx2.Request("HEAD", "https://huggingface.co/owner/clip"))
    ask_hub({"owner/clip": RemoteEntryNotFoundError("404 Entry Not Found", response=answer)})
    (problem,), _ = model_access.check({"clip": "owner/clip"}, tmp_path)
    assert "world.clip: want an open_clip folder with open_clip_config.json or its hub id, got 'owner/clip'" in problem
    assert "licence" not in problem


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline"), httpx2.ConnectError("no name server"), TimeoutError()])
def test_an_unreachable_hub_is_a_note_and_is_asked_once(error: Exception, ask_hub: Any, tmp_path: Path) -> None:
    requests = ask_hub(dict.fromkeys(("owner/base", "owner/depth"), error))
    problems, note = model_access.check({"base_model": "owner/base", "depth": "owner/depth"}, tmp_path)
    assert (problems, len(requests)) == ([], 1)
    assert "models of the hub was not checked, because it is unreachable, from owner/base on" in note


def test_endpoints_and_factories_are_not_looked_for_on_the_hub(ask_hub: Any, tmp_path: Path) -> None:
    requests = ask_hub({})
    for llm in ("http://localhost:8000/v1#owner/name", "my_llm:make"):
        assert model_access.check({"llm": llm}, tmp_path) == ([], "")
    assert not requests


def test_the_kind_of_a_folder_is_checked(tmp_path: Path) -> None:
    weights = ROOT / "toyworld/weights"
    models = {key: str(weights / key) for key in ("base_model", "detector", "segmenter", "clip", "dino", "depth", "t5")}
    assert model_access.check(models, tmp_path) == ([], "")
    problems, _ = model_access.check(models | {"dino": str(weights / "depth"), "clip": str(weights / "dino")}, tmp_path)
    assert len(problems) == 2
    assert problems[0].startswith("world.clip: want an open_clip folder with open_clip_config.json, got")
    assert problems[1].startswith("world.dino: want a transformers ViT folder")
    assert "with model_type" in problems[1]


@pytest.mark.slow
def test_nothing_is_written_for_a_model_of_the_wrong_kind(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (clone / "params.yaml").read_bytes()
    assert cli.main(["init", "captions.txt", "--no-pin", "--dino", str(ROOT / "toyworld/weights/depth")]) == 2
    assert "world.dino: want a transformers ViT folder" in capsys.readouterr().err
    assert (clone / "params.yaml").read_bytes() == before


def test_the_table_has_all_models_of_the_template() -> None:
    assert PRESETS
    assert {*model_access._KINDS, "t5"} == {*MODELS, "base_model"}


def test_models_of_metric_depth_are_named(ask_hub: Any, tmp_path: Path) -> None:
    """Of the same class as those of relative depth: the stage pairs failed, after thousands of requests to the LLM."""
    ask_hub(MANIFESTS)
    (tmp_path / "dpt").mkdir()
    (tmp_path / "dpt/config.json").write_text(json.dumps({"model_type": "dpt", "add_projection": True}))
    for name in ("owner/metric", "dpt"):
        (problem,), _ = model_access.check({"depth": name}, tmp_path)
        assert "a model of metric depth, where nearer is smaller; use one of relative inverse depth" in problem


@pytest.mark.slow
def test_a_file_in_place_of_a_folder_is_named(ask_hub: Any, tmp_path: Path) -> None:
    requests = ask_hub({})
    for name in ("sdxl.safetensors", "sam.pth"):
        (tmp_path / name).write_bytes(b"")
    (problem,), _ = model_access.check({"base_model": "sdxl.safetensors", "segmenter": "sam.pth"}, tmp_path)
    assert problem.startswith("world.base_model: want a diffusers text-to-image pipeline folder with model_index.json")
    assert "got the file 'sdxl.safetensors'; name its folder; a single-file checkpoint" in problem
    assert not requests
