"""Model sources: the table of model kinds, and a check that a folder or hub repository is of the wanted kind."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emuedit.data.dependencies import files_below
from emuedit.data.name_list import first_names
from emuedit.models import model_files
from emuedit.models.model_files import MissingModelError, ModelFileError

if TYPE_CHECKING:
    import torch

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[0-9a-f]{40})?")
"""A model on the hub: `owner/name` (newest version), or pinned to a commit: `owner/name@<40 hexadecimal digits>`."""


@dataclass(frozen=True)
class ModelKind:
    """One kind of model folder: its manifest file, and the accepted values of `key` in it."""

    name: str
    file: str
    key: str | None = None
    accepts: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    """Other required files."""
    refuses: tuple[tuple[str, object, str], ...] = ()
    """(key, value, what such a model is) of manifests with an accepted value of `key` that are of another kind."""

    def __str__(self) -> str:
        values = f" with {self.key} {' | '.join(self.accepts)}" if self.accepts else ""
        return f"{self.name} folder with {self.file}{values}"


_PREPROCESSOR = ("preprocessor_config.json",)
BASE_MODEL = ModelKind(
    "a diffusers text-to-image pipeline",
    "model_index.json", "_class_name", ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
)  # fmt: skip
EDITOR = ModelKind("an editor", "model_index.json", "_class_name", ("EmuEditPipeline",))
DETECTOR = ModelKind("a transformers zero-shot detector", "config.json", "model_type", ("owlvit", "owlv2", "grounding-dino"))
SEGMENTER = ModelKind("a segment_anything", "config.json", "model_type", ("segment_anything",))
CLIP = ModelKind("an open_clip", "open_clip_config.json")
DINO = ModelKind("a transformers ViT", "config.json", "model_type", ("dinov2", "dinov2_with_registers", "vit"), _PREPROCESSOR)
_METRIC = "a model of metric depth, where nearer is smaller; use one of relative inverse depth"
DEPTH = ModelKind(
    "a transformers relative-depth", "config.json", "model_type", ("depth_anything", "dpt"), _PREPROCESSOR,
    # DPT's config does not say what it estimates; only its metric models, facebook/dpt-dinov2-*-nyu and -kitti, have a projection
    (("depth_estimation_type", "metric", _METRIC), ("add_projection", True, _METRIC)),
)  # fmt: skip
CHAT = ModelKind("a transformers chat model", "config.json")
KINDS = (BASE_MODEL, EDITOR, DETECTOR, SEGMENTER, CLIP, DINO, DEPTH)


def import_library(name: str) -> Any:
    """Import a heavy library when a model is loaded, not when its adapter is imported.

    Disables the progress bars that diffusers, and transformers under it, show for every loaded folder, which would hide ours.
    """
    library = importlib.import_module(name)
    if name in ("diffusers", "transformers"):
        for loader in {name, "transformers"}:
            importlib.import_module(loader).utils.logging.disable_progress_bar()
    return library


def is_folder(name_or_path: str) -> bool:
    """Whether the name is a folder on this machine."""
    return Path(name_or_path).is_dir()


def split_revision(name_or_path: str) -> tuple[str, str | None]:
    """(name, commit) of a pinned hub id, for a library's `from_pretrained`; (name, None) otherwise."""
    name, _, commit = name_or_path.rpartition("@")
    is_pinned = bool(name) and HUB_ID.fullmatch(name_or_path) is not None and not Path(name_or_path).exists()
    return (name, commit) if is_pinned else (name_or_path, None)


def download_snapshot(hub_id: str, patterns: Sequence[str] | None = None) -> Path:
    """The folder of a hub repository, at its pinned commit if any; downloaded once. patterns: files to download."""
    name, revision = split_revision(hub_id)
    return Path(import_library("huggingface_hub").snapshot_download(name, revision=revision, allow_patterns=patterns))


def load_frozen(name_or_path: str, model: str, processor: str, device: str, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """The frozen network on `device`, and its processor or tokenizer, of a transformers folder or a hub id.

    model, processor: names of classes of transformers. Weights are read from safetensors only. Call `read_manifest` before: it
    explains what is wrong with a folder.
    """
    transformers = import_library("transformers")
    name, revision = split_revision(name_or_path)
    network = getattr(transformers, model).from_pretrained(name, revision=revision, dtype=dtype, use_safetensors=True)
    inputs = getattr(transformers, processor).from_pretrained(name, revision=revision)
    return network.to(device).requires_grad_(False).eval(), inputs


def read_manifest(name_or_path: str, kind: ModelKind) -> dict[str, Any]:
    """Read the manifest file of a local folder or a hub repository, and check that it is of this kind.

    Raises MissingModelError, or ModelFileError for another kind or incomplete files. The messages say what was wanted, what was
    found and what to do.
    """
    if Path(name_or_path).is_file():
        raise MissingModelError(f"want {kind}, got {describe_file(name_or_path)}")
    if is_folder(name_or_path):
        folder = Path(name_or_path)
        path = folder / kind.file
        if not path.is_file():
            raise MissingModelError(f"want {kind}, got {describe_folder(folder)}")
        if not any(file.suffix == ".safetensors" for file in files_below(folder)):
            raise MissingModelError(
                f"want {kind} and *.safetensors weights, got {describe_folder(folder)} without them; "
                "save it again with safe_serialization"
            )
    elif HUB_ID.fullmatch(name_or_path):
        path = _download_manifest(name_or_path, kind)
    else:
        raise MissingModelError(
            f"want {kind} or a hub id 'owner/name' (or 'owner/name@<commit>', all 40 digits), got {name_or_path!r}, which is "
            "neither; check the path, or train the toy models first"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # not JSON: the check reports the file
        model_files.check(path.parent)
        raise
    if difference := find_difference(manifest, kind):
        raise ModelFileError(f"want {kind}, got {name_or_path!r} with {difference}")
    if is_folder(name_or_path):
        if missing := [name for name in kind.also if not Path(name_or_path, name).is_file()]:
            raise MissingModelError(f"want {kind} and {', '.join(missing)}, got {name_or_path!r} without")
        model_files.check(Path(name_or_path))
    return manifest


def check_keeps_frame(processor: Any) -> None:
    """Raise ValueError for an image processor of transformers that pads or crops: maps of its output are resized to the image.

    transformers' post-processing resizes maps too, without undoing either.
    """
    if changes := [name for name in ("do_pad", "do_center_crop") if getattr(processor, name, None)]:
        raise ValueError(
            f"want an image processor that only resizes, got {type(processor).__name__} with {' and '.join(changes)}, which "
            "would shift the maps; set them to false in preprocessor_config.json, and do_resize to true, or use another model"
        )


def find_difference(manifest: Mapping[str, Any], kind: ModelKind) -> str:
    """The value in a manifest that shows another kind, such as "model_type 'owlvit'"; empty if there is none."""
    if kind.key is not None and manifest.get(kind.key) not in kind.accepts:
        return f"{kind.key} {manifest.get(kind.key)!r}"
    reasons = [f"{key} {value!r}, {meaning}" for key, value, meaning in kind.refuses if manifest.get(key) == value]
    return reasons[0] if reasons else ""


def describe_file(path: str) -> str:
    """Describe a file that was named in place of a folder, and say what to do."""
    advice = "name its folder"
    if path.endswith((".safetensors", ".ckpt")):
        advice += (
            "; a single-file checkpoint of Stable Diffusion becomes one with "
            "diffusers.StableDiffusionPipeline (or StableDiffusionXLPipeline).from_single_file(file).save_pretrained(folder)"
        )
    return f"the file {path!r}; {advice}"


def describe_folder(folder: Path) -> str:
    """Describe a folder in one phrase: the kinds of model that it fits, or else its first file names."""
    fitting = [str(kind) for kind in KINDS if _fits(folder, kind)]
    if fitting:
        return f"{str(folder)!r}, {' or '.join(fitting)}"
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return f"{str(folder)!r}, an empty folder"
    return f"{str(folder)!r} with {first_names(names)}"


def _fits(folder: Path, kind: ModelKind) -> bool:
    path = folder / kind.file
    if not path.is_file():
        return False
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # not JSON
        return False
    return not find_difference(manifest, kind)


def _download_manifest(hub_id: str, kind: ModelKind) -> Path:
    name, revision = split_revision(hub_id)
    try:
        return Path(import_library("huggingface_hub").hf_hub_download(name, kind.file, revision=revision))
    except Exception as error:  # the hub has many error classes: offline, missing repository or file, no access
        raise MissingModelError(
            f"want {kind} or its hub id, got {hub_id!r}: no such folder, and the hub did not return "
            f"{kind.file} ({type(error).__name__}); check the name, the network and the login"
        ) from error
