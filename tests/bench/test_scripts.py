import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "bench").glob("*.py"))


@pytest.fixture(scope="module")
def help_texts() -> dict[str, tuple[object, str]]:
    """Exit status and output of every benchmark with `--help`. One process imports the heavy libraries for all of them."""
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("print_help.py")), *map(str, SCRIPTS)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_prints_the_docstring_and_offers_quick(script: Path, help_texts: dict[str, tuple[object, str]]) -> None:
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    assert docstring, f"want a docstring in {script.name}"
    assert f"bench/{script.name}" in docstring, "the docstring names the command"
    assert f"bench/results/{script.stem}.json" in docstring, "the docstring names the result file"
    status, text = help_texts[script.name]
    assert status == 0
    assert docstring.splitlines()[0] in text
    assert "--quick" in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_results_are_written_by_the_shared_function(script: Path) -> None:
    """It keeps the full result when `--quick` runs, and prints the last line."""
    assert "command.write_result(__file__, figures, args.quick)" in re.sub(r"figures \| \{[^}]*\}", "figures", script.read_text())


def test_every_result_file_has_a_script() -> None:
    names = {path.name.partition(".")[0] for path in (ROOT / "bench" / "results").glob("*.json")}
    assert names <= {script.stem for script in SCRIPTS}


def test_bench_scripts_do_not_hide_a_package() -> None:
    """`python bench/x.py` puts `bench/` first on the import path."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert not packages & {script.stem for script in SCRIPTS}
