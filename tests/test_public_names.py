"""What `from emuedit import ...` offers, and what `help` says about it."""

import inspect
import pkgutil
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import emuedit
from emuedit import Editor, EditSettings
from emuedit.config import Params

ROOT = Path(__file__).parents[1]


def test_the_documented_errors_can_be_imported_from_the_package() -> None:
    table = (ROOT / "docs/api.md").read_text().partition("## Errors")[2]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert documented == {name for name in emuedit.__all__ if name.endswith("Error")}
    assert all(issubclass(getattr(emuedit, name), ValueError) for name in documented)
    with_path = [path for row in rows for path in re.findall(r"`(emuedit\.[\w.]+)`", row.split("|")[1])]
    assert [pkgutil.resolve_name(path).__bases__ for path in with_path] == [(RuntimeError,), (UserWarning,)]


@pytest.mark.slow
def test_the_public_classes_are_listed_in_a_process_that_has_imported_none() -> None:
    code = "import sys, emuedit; print(*dir(emuedit)); assert 'torch' not in sys.modules"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(emuedit.__all__) <= set(process.stdout.split())


@pytest.mark.slow
def test_the_members_are_the_public_classes() -> None:
    assert [name for name, _ in inspect.getmembers(emuedit, inspect.isclass)] == sorted(emuedit.__all__)


def test_the_listed_names_are_public_classes_modules_and_python_names() -> None:
    others = set(dir(emuedit)) - set(emuedit.__all__)
    assert all(name.startswith("__") or inspect.ismodule(getattr(emuedit, name)) for name in others)
    assert "editor" in others
    assert not others & {"importlib", "sys", "Any", "RenamedCommands"}


def test_the_help_of_settings_describes_each_with_its_default() -> None:
    text = pydoc.plain(pydoc.render_doc(EditSettings))
    for name, field in EditSettings.model_fields.items():
        assert field.description
        assert f" |  {name} = {field.default}\n |      {field.description.splitlines()[0]}\n" in text


def test_the_help_of_params_names_required_ones_and_shortens_nested_ones() -> None:
    class Inner(Params):
        width: int = 3
        """Width in px."""

    class Outer(Params):
        """Params of a stage."""

        name: str
        """First line,
        second line."""
        inner: Inner = Inner()
        """More."""

    class Extended(Outer):
        """More params."""

        size: tuple[int, ...] = (1, 2)

    fields = "name, required\n    First line,\n    second line.\ninner = Inner(...)\n    More."
    assert Inner.__doc__ == "width = 3\n    Width in px."
    assert Outer.__doc__ == f"Params of a stage.\n\n{fields}"
    assert Extended.__doc__ == f"More params.\n\n{fields}\nsize = (1, 2)"


def test_the_help_of_the_editor_describes_its_attributes() -> None:
    editor = Editor.__new__(Editor)
    Editor.__init__(editor, None, None, EditSettings())  # type: ignore[arg-type]
    text = Editor.__doc__ or ""
    assert all(re.search(rf"^    {name}: ", text, re.MULTILINE) for name in vars(editor))
