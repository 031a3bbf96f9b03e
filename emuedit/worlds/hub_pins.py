"""Pin hub models to their current commits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emuedit.config import ParamsError
from emuedit.failures import FailureKind, kind_of
from emuedit.models.model_sources import HUB_ID, import_library, split_revision

_TIMEOUT_S = 10.0


def pin(models: Mapping[str, str], root: Path) -> tuple[dict[str, str], str]:
    """(models with `owner/name@<commit>` for every hub id, a note if pinning was not possible, or an empty string).

    Other names are unchanged: files and folders in `root`, endpoints, open_clip's 'model/tag', hub ids with a commit, and
    the segmenter, which is always a local file or folder, even one that is still to be downloaded.
    Raises ParamsError for a repository that does not exist or that the login cannot read.
    """
    pinned = dict(models)
    unpinned = {key: name for key, name in models.items() if is_unpinned(key, name, root)}
    for key, name in unpinned.items():
        try:
            commit: Any = import_library("huggingface_hub").HfApi().model_info(name, timeout=_TIMEOUT_S).sha
        except Exception as error:  # the hub has many error classes
            if kind_of(error) is not FailureKind.NETWORK and not isinstance(error, ConnectionError):  # HF_HUB_OFFLINE raises one
                advice = "--no-pin keeps the names"
                raise ParamsError(
                    f"world.{key}: {name!r} is not a local path, and the hub returned: {error}; check the name, or {advice}"
                ) from error
            left = ", ".join(each for each in unpinned if pinned[each] == models[each])
            return pinned, f"not pinned to a commit, because the hub is unreachable ({type(error).__name__}): {left}"
        pinned[key] = f"{name}@{commit}"
    return pinned, ""


def is_unpinned(key: str, name: str, root: Path) -> bool:
    """Whether the model of a key of `world` is a hub id without a commit."""
    if key == "segmenter":
        return False
    is_name = HUB_ID.fullmatch(name) is not None and not (root / name).exists()
    return is_name and split_revision(name)[1] is None and not is_open_clip(name)


def is_open_clip(name: str) -> bool:
    """Whether a name such as 'ViT-L-14/openai' is one of open_clip's, not a hub id."""
    return name.partition("/")[0] in import_library("open_clip").list_models()
