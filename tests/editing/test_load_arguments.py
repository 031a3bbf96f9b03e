"""Arguments of `Editor.load`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emuedit import EditError, Editor


def test_settings_of_another_type_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"want EditSettings, got dict \{'steps': 1\}; use EditSettings\(\.\.\.\), or "):
        Editor.load(tmp_path, settings={"steps": 1})  # type: ignore[arg-type]


@pytest.mark.slow
def test_device_and_number_format_may_be_objects_of_torch(editor_folder: Callable[[str], Path]) -> None:
    editor = Editor.load(editor_folder("toy"), device=torch.device("cpu"), dtype=torch.float32)
    assert (editor.sampler.device, editor.sampler.dtype) == (torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=r"want device 'auto', .*got 'meta'"):
        Editor.load(editor_folder("toy"), device=torch.device("meta"))
