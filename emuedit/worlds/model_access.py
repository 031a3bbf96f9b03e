"""Check that the models of a world are of the right kinds and can be downloaded, before a stage spends hours on their inputs."""

import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path

from emuedit.failures import FailureKind, chain_of, class_names, kind_of
from emuedit.models import model_sources
from emuedit.models.llm_loading import is_local
from emuedit.models.model_files import ModelFileError
from emuedit.models.model_sources import HUB_ID, ModelKind, split_revision
from emuedit.name_hints import closest_match
from emuedit.worlds.hub_pins import is_open_clip

_KINDS = {
    "base_model": model_sources.BASE_MODEL,
    "detector": model_sources.DETECTOR,
    "segmenter": model_sources.SEGMENTER,
    "clip": model_sources.CLIP,
    "dino": model_sources.DINO,
    "depth": model_sources.DEPTH,
    "llm": model_sources.CHAT,
}
"""Keys of `world` -> kinds of model; that of t5 is defined where it is loaded."""
_WEIGHT_FOLDERS = ("unet/", "vae/", "text_encoder/")
_TIMEOUT_S = 10.0
_NO_ACCESS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def check(models: Mapping[str, str], root: Path, asks_hub: bool = True, section: str = "world.") -> tuple[list[str], str]:
    """(problems, a note if the hub is unreachable, or an empty string). asks_hub: whether to check hub ids, too.

    models: keys of `world` -> names. section: what comes before the keys in problems. Reads the manifest file of each folder in
    `root` and of each hub id. The hub shows a gated model's page and commit to everyone, but its files only to those who accepted
    its licence. Endpoints are not checked, and of names of open_clip only whether it has them. A file in place of a folder is a
    problem, except for the segmenter, which may be a file of weights. Missing or damaged files of a folder are left to
    `params_check`.
    """
    from emuedit.predictor.task_predictor import T5  # imports torch

    problems, unreachable = [], ""
    for key, kind in (_KINDS | {"t5": T5}).items():
        name = models.get(key)
        if name is None:
            continue
        if (root / name).is_dir():
            problems += [f"{section}{key}: {problem}" for problem in _folder_problems(root / name, kind)]
        elif (root / name).is_file() and key != "segmenter":
            problems.append(f"{section}{key}: want {kind}, got {model_sources.describe_file(name)}")
        elif key == "clip" and is_open_clip(name):
            problems += [f"{section}{key}: {problem}" for problem in _tag_problems(name)]
        elif asks_hub and not unreachable and _is_on_hub(key, name, root):
            try:
                _ask_hub(name, kind)
            except Exception as error:  # the hub has many error classes
                if _is_unreachable(error):
                    unreachable = f"the access to models of the hub was not checked, because it is unreachable, from {name} on"
                else:
                    problems.append(f"{section}{key}: {_describe(error, name, kind)}")
    return problems, unreachable


def _ask_hub(hub_id: str, kind: ModelKind) -> None:
    """Check a repository of the hub without downloading its weights.

    Raises an error of the hub if its files may not be downloaded, and ModelFileError for another kind and for missing weights.
    """
    hub, (name, revision) = model_sources.import_library("huggingface_hub"), split_revision(hub_id)
    hub.get_hf_file_metadata(hub.hf_hub_url(name, kind.file, revision=revision))  # `hf_hub_download` would retry for 20 s
    model_sources.read_manifest(hub_id, kind)
    files = [entry.rfilename for entry in hub.HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_S).siblings or ()]
    for folder in _WEIGHT_FOLDERS if kind == model_sources.BASE_MODEL else ("",):
        weights = [file for file in files if file.startswith(folder) and file.count("/") == folder.count("/")]
        if not any(file.endswith(".safetensors") and "." not in file.removesuffix(".safetensors") for file in weights):
            raise ModelFileError(
                f"want {kind} and weights {folder}*.safetensors without a variant such as fp16, got {hub_id!r} without "
                "them; name another model, or a folder with weights that you saved with safe_serialization"
            )


def _is_on_hub(key: str, name: str, root: Path) -> bool:
    if (root / name).exists() or not HUB_ID.fullmatch(name) or key == "segmenter":  # which is loaded from a file or folder only
        return False
    return is_local(name)


def _tag_problems(name: str) -> Iterator[str]:
    """The problem of a name 'model/tag' with a model of open_clip whose weights have no such tag."""
    open_clip, (model, _, tag) = model_sources.import_library("open_clip"), name.partition("/")
    if not open_clip.get_pretrained_cfg(model, tag):
        tags = open_clip.list_pretrained_tags_by_model(model)
        yield f"want '{model}/<tag>' with a tag of {', '.join(tags)}; got {name!r}{closest_match(tag, tags)}"


def _folder_problems(folder: Path, kind: ModelKind) -> Iterator[str]:
    file = folder / kind.file
    if not file.is_file():
        yield f"want {kind}, got {model_sources.describe_folder(folder)}; name another model"
        return
    try:
        difference = model_sources.find_difference(json.loads(file.read_text(encoding="utf-8")), kind)
    except (ValueError, AttributeError):  # damaged
        return
    if difference:
        yield f"want {kind}, got {str(folder)!r} with {difference}; name another model"


def _describe(error: Exception, name: str, kind: ModelKind) -> str:
    if isinstance(error, ModelFileError):
        return str(error)
    classes = {class_name for cause in chain_of(error) for class_name in class_names(cause)}
    statuses = {getattr(getattr(cause, "response", None), "status_code", None) for cause in chain_of(error)}
    is_refused = bool(statuses & set(_NO_ACCESS)) and "RepositoryNotFoundError" not in classes  # 401 for an unknown repository
    if is_refused or "GatedRepoError" in classes:
        page = f"https://huggingface.co/{split_revision(name)[0]}"
        return (
            f"want a model whose files you may download, got {name!r}, which the hub refused: accept its licence at {page}, then "
            "run `hf auth login` or set HF_TOKEN; or name a folder with a copy"
        )
    return f"want {kind} or its hub id, got {name!r}: the hub did not return {kind.file}: {error}; check the name and the login"


def _is_unreachable(error: Exception) -> bool:
    """Whether the hub did not answer, or may not be asked (HF_HUB_OFFLINE)."""
    if kind_of(error) is FailureKind.NETWORK:
        return True
    causes = list(chain_of(error))
    if any(getattr(cause, "response", None) is not None for cause in causes):
        return False
    return any(isinstance(cause, ConnectionError) or type(cause).__name__ == "LocalEntryNotFoundError" for cause in causes)
