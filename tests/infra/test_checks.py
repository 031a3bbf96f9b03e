""".ci/real_s3, with a store and tests that fail on request, and the workflow that runs it and infra/audit."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repository import ROOT

STORE = """#!/bin/sh
case $1 in
    start) echo "export S3_ENDPOINT_URL=http://127.0.0.1:$3"; exit $START_STATUS ;;
    stop) echo stopped >> "$LOG" ;;
esac
"""
TESTS = """#!/bin/sh
echo "$S3_ENDPOINT_URL $*" >> "$LOG"
exit $TESTS_STATUS
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script, a store and a `uv` that end with the statuses START_STATUS and TESTS_STATUS."""
    for name, content in {"infra/s3/ceph-rgw.sh": STORE, "bin/uv": TESTS}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(content)
        path.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/real_s3", tmp_path / ".ci/real_s3")
    return tmp_path


@pytest.mark.parametrize(
    ("start", "tests", "in_ci", "status", "message"),
    [
        (0, 0, "true", 0, ""),
        (0, 1, "", 1, ""),
        (3, 0, "true", 0, "Ceph is not installed"),
        (1, 0, "true", 1, "Ceph is installed, but did not start; the end of its log is above; a failure, since CI is set"),
        (1, 0, "", 0, "Ceph is installed, but did not start; the end of its log is above\n"),
        (124, 0, "true", 1, "did not start within 60 s"),
        (0, 124, "true", 1, "the store hangs, or this machine is too slow for its tests; a failure, since CI is set"),
        (0, 124, "", 0, "the store hangs, or this machine is too slow for its tests\n"),
    ],
)
def test_a_store_that_hangs_or_fails_is_not_taken_for_one_that_is_not_installed(
    start: int, tests: int, in_ci: str, status: int, message: str, checkout: Path
) -> None:
    log = checkout / "log"
    settings = {"START_STATUS": str(start), "TESTS_STATUS": str(tests), "LOG": str(log), "CI": in_ci}
    environment = {**os.environ, **settings, "PATH": f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.run([checkout / ".ci/real_s3"], env=environment, capture_output=True, text=True)
    assert process.returncode == status, process.stdout + process.stderr
    assert message in process.stdout
    *tests_run, last = log.read_text().splitlines()
    assert last == "stopped"
    assert len(tests_run) == (start == 0)
    for line in tests_run:
        assert line.startswith("http://127.0.0.1:5158 run --no-sync pytest -m real_s3")


def test_every_file_with_tests_of_a_real_store_is_in_the_lane() -> None:
    pattern = re.compile(r"store_url[:] str|mark[.]real_s3")
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py") if pattern.search(path.read_text())}
    lane = (ROOT / ".ci/real_s3").read_text()
    names = lane.partition("test_{")[2].partition("}")[0].split(",")
    assert files == {f"test_{name}.py" for name in names}


def read_workflow(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A workflow, and job -> the lines that it runs."""
    workflow: dict[str, Any] = yaml.safe_load((ROOT / f".github/workflows/{name}.yaml").read_text())
    jobs = workflow["jobs"].items()
    return workflow, {job: "\n".join(step.get("run", "") for step in content["steps"]) for job, content in jobs}


def test_the_workflow_installs_the_store_and_audits_the_components() -> None:
    workflow, commands = read_workflow("checks")
    before, _, _ = commands["checks"].partition(".ci/run")
    assert "infra/s3/ceph-rgw.sh install" in before
    assert "infra/audit" in commands["audit"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60


def test_the_long_tests_run_every_night() -> None:
    workflow, commands = read_workflow("nightly")
    (schedule,) = workflow[True]["schedule"]  # YAML 1.1 reads the key `on` as true
    assert re.fullmatch(r"\d+ \d+ \* \* \*", schedule["cron"])
    assert "workflow_dispatch" in workflow[True], "want to start it by hand, too"
    *before, last = commands["long"].strip().splitlines()
    assert last == "uv run --no-sync pytest -m long"
    assert "uv sync --locked" in before
    checks, _ = read_workflow("checks")
    for job in workflow["jobs"].values():
        assert job["steps"][:2] == checks["jobs"]["checks"]["steps"][:2], "want the same checkout and Python"


RETRAIN = """#!/bin/sh
[ "$*" = "run --no-sync retrain" ] || exit 2
mkdir -p reports/evaluation
echo "$METRICS" > reports/evaluation/metrics.json
[ ! -f ran ] || echo "$SECOND"
touch ran
"""
DONE = "Nothing to do: all 9 stages are up to date, and registered."


@pytest.mark.parametrize(
    ("overall", "second", "problem"),
    [
        (0.38, DONE, ""),
        (0.37, DONE, "want edit success of at least 0.38, got 0.37"),
        (0.45, "== 8 of 9 stages are up to date", "== 8 of 9 stages are up to date"),
    ],
)
def test_the_default_run_of_every_night_fails_for_a_bad_editor_and_for_a_second_run_with_work(
    overall: float, second: str, problem: str, tmp_path: Path
) -> None:
    _, commands = read_workflow("nightly")
    before, _, steps = commands["default_run"].partition("uv sync --locked\n")
    assert before
    (tmp_path / "uv").write_text(RETRAIN)
    (tmp_path / "uv").chmod(0o755)
    folders = [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
    metrics = json.dumps({"edit_success": {"identity": {"overall": 0.0}, "emuedit": {"overall": overall}}})
    environment = {**os.environ, "METRICS": metrics, "SECOND": second, "PATH": os.pathsep.join(folders)}
    process = subprocess.run(["bash", "-ec", steps], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == bool(problem), process.stdout + process.stderr
    assert problem in process.stdout + process.stderr


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yaml")), ids=lambda path: path.stem)
def test_workflows_may_only_read_the_repository(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert not [name for name, job in workflow["jobs"].items() if "permissions" in job]


FIRST_WITH_NODE_24 = {"actions/checkout": 5, "actions/setup-python": 6, "actions/upload-artifact": 6}
"""Action -> its first major version for Node 24. GitHub's runners no longer have Node 20, with which earlier ones run."""


def test_actions_run_with_the_node_of_the_runners() -> None:
    used = [
        use
        for path in (ROOT / ".github/workflows").glob("*.yaml")
        for use in re.findall(r"uses: (\S+)@v(\d+)$", path.read_text(), re.M)
    ]
    assert used
    for action, major in used:
        assert int(major) >= FIRST_WITH_NODE_24[action], action


@pytest.mark.slow
def test_the_workflows_are_valid() -> None:
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.github-workflows"]
    process = subprocess.run(
        [*command, *(ROOT / ".github/workflows").glob("*.yaml")], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
