"""infra/audit: a list of all parts, and an honest answer where vulnerabilities cannot be looked up."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.repository import ROOT

AUDIT = '#!/bin/sh\nif [ "$1" = audit ]; then echo \'{output}\'; exit {status}; fi\nexec {uv} "$@" --offline\n'


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("uv"), reason="uv is not here")
@pytest.mark.parametrize(
    ("output", "status", "want"),
    [("no known vulnerabilities", 0, 0), ("Found 1 known vulnerability: connections leak", 1, 1), ("cause: dns error", 2, 3)],
)
def test_the_exit_status_says_what_is_known(output: str, status: int, want: int, tmp_path: Path) -> None:
    fake = tmp_path / "bin/uv"
    fake.parent.mkdir()
    fake.write_text(AUDIT.format(output=output, status=status, uv=shutil.which("uv")))
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    out = tmp_path / "sbom.json"
    process = subprocess.run([ROOT / "infra/audit", out], env=environment, capture_output=True, text=True)
    assert process.returncode == want, process.stderr
    assert ("NOT checked" in process.stderr) is (want == 3)
    sbom = json.loads(out.read_text())
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.5")
    names = {component["name"] for component in sbom["components"]}
    assert {"torch", "mlflow", "prefect", "dvc", "psycopg2-binary"} <= names
    assert "pytest" not in names
