"""The workspace in which editors are compared."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[[str], ModuleType]


@pytest.mark.slow
def test_a_workspace_of_an_earlier_run_gets_the_present_editor(load_script: Load, tmp_path: Path) -> None:
    exact_pairs = load_script("exact_pairs")
    (tmp_path / "params.yaml").touch()
    for name in ("first", "second"):
        editor = tmp_path / name
        editor.mkdir()
        workspace = exact_pairs.create_workspace(tmp_path / "workspace", tmp_path / "params.yaml", editor)
        assert (workspace / "models" / "editor").resolve() == editor
