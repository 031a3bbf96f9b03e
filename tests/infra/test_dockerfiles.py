"""The Dockerfiles: checked by hadolint, pinned to the versions of the project, and without root."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.repository import ROOT

DOCKERFILES = sorted((ROOT / "infra/docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
each_file = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)


@each_file
def test_hadolint_finds_nothing(path: Path) -> None:
    process = subprocess.run([Path(sys.executable).parent / "hadolint", "--no-color", path], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


@each_file
def test_packages_come_from_the_lock_file_and_the_image_runs_without_root(path: Path) -> None:
    text = path.read_text()
    assert "--locked --no-dev" in text
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2, "want a stage that builds and one that runs"
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["10001:10001"]
    assert re.search(r"^HEALTHCHECK ", text, re.MULTILINE)
    assert not re.search(r"^(ARG|ENV) .*(PASSWORD|SECRET|TOKEN)", text, re.MULTILINE)
    assert not re.search(r"^FROM .*:latest", text, re.MULTILINE)


@each_file
def test_python_and_the_image_have_the_projects_versions(path: Path) -> None:
    text = path.read_text()
    version = re.search(r"ARG PYTHON_VERSION=(\d+\.\d+)", text)
    assert version is not None
    assert PROJECT["project"]["requires-python"].startswith(f">={version.group(1)}")
    assert f"-t emuedit-{path.stem}:{PROJECT['project']['version']}" in text
    extras = set(re.findall(r"--extra (\w+)", text))
    assert extras <= set(PROJECT["project"]["optional-dependencies"])


def test_the_lock_file_gives_what_the_image_without_cuda_installs() -> None:
    export = ["uv", "export", "--locked", "--offline", "--no-dev", "--no-emit-project", "--extra", "servers"]
    packages = subprocess.run([*export, "--prune", "torch", "--prune", "torchvision"], cwd=ROOT, capture_output=True, text=True)
    if "not find" in packages.stderr:
        pytest.skip("uv is not here")
    assert packages.returncode == 0, packages.stderr
    assert not re.search(r"^(torch|torchvision|nvidia-\S+|triton)==", packages.stdout, re.MULTILINE)
    assert re.search(r"^mlflow==", packages.stdout, re.MULTILINE)
    lines = subprocess.run([*export, "--no-hashes"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    torch = [match.group() for line in lines if (match := re.match(r"(torch|torchvision)==[^ ;]*", line))]
    assert len(torch) == 2


def test_the_build_gets_only_what_is_listed() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "want everything left out first, so that no .env and no secret can reach an image"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert all((ROOT / path).exists() for path in allowed)
    assert not any(("secret" in Path(path).name and path != "infra/docker/read-secrets") or ".env" in path for path in allowed)
    for path in DOCKERFILES:
        for source in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", path.read_text(), re.MULTILINE):
            missing = [word for word in source.split() if word != "." and not any(word.startswith(name) for name in allowed)]
            assert not missing, f"{path.name} copies {missing}, which .dockerignore leaves out"
