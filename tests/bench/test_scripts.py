import ast
import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import pytest

from emuedit.processes import QUIET_ENV

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "bench").glob("*.py"))
RESULTS = [path for path in sorted((ROOT / "bench" / "results").glob("*.json")) if ".quick." not in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_prints_the_docstring_and_offers_quick(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    assert docstring, f"want a docstring in {script.name}"
    assert f"bench/{script.name}" in docstring, "the docstring names the command"
    assert f"bench/results/{script.stem}.json" in docstring, "the docstring names the result file"
    for name, value in QUIET_ENV.items():  # they are set by the scripts
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(script.parent))
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert not end.value.code
    assert docstring.splitlines()[0] in output.getvalue()
    assert "--quick" in output.getvalue()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_results_are_written_by_the_shared_function(script: Path) -> None:
    """It keeps the full result when `--quick` runs, says which arguments it has, and prints the last line."""
    assert "command.write_result(__file__, figures, args)" in re.sub(r"figures \| \{[^}]*\}", "figures", script.read_text())


def test_every_result_file_has_a_script() -> None:
    names = {path.name.partition(".")[0] for path in (ROOT / "bench" / "results").glob("*.json")}
    assert names <= {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_say_on_what_they_were_measured(file: Path) -> None:
    result = json.loads(file.read_text())
    assert "hardware" in result
    assert result["quick"] is False, "a smoke test is no result"


def test_bench_scripts_do_not_hide_a_package() -> None:
    """`python bench/x.py` puts `bench/` first on the import path."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert not packages & {script.stem for script in SCRIPTS}
