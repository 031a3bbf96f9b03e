"""Fixtures of the editor's tests: tiny base models of the four kinds that an editor is made from, and tiny editors."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from emuedit.editor import sampling
from emuedit.editor.sampling import EditSampler
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import Runtime
from tests.editor.tiny_pipelines import build_base_model, save_editor

MakeBaseModel = Callable[[str], TextToImageModel]


@pytest.fixture
def make_base_model() -> MakeBaseModel:
    """Builds a random base model of one of KINDS."""
    return build_base_model


@pytest.fixture(scope="session")
def editor_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random editor of one of KINDS, made once; not to be changed."""

    @cache
    def make(kind: str) -> Path:
        return save_editor(kind, tmp_path_factory.mktemp(kind) / "editor")

    return make


@pytest.fixture
def make_sampler(editor_folder: Callable[[str], Path]) -> Callable[..., EditSampler]:
    """Loads a random editor of one of KINDS."""

    def load(kind: str = "toy", dtype: str = "float32") -> EditSampler:
        return sampling.load(editor_folder(kind), Runtime("cpu", dtype))

    return load
