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


@pytest.mark.slow
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
    assert len(re.findall(r"^HEALTHCHECK ", text, re.MULTILINE)) == 1
    assert not re.search(r"^(ARG|ENV) .*(PASSWORD|SECRET|TOKEN)", text, re.MULTILINE)
    assert not re.search(r"^FROM .*:latest", text, re.MULTILINE)


def test_nothing_runs_on_the_gpu_beside_a_retrain() -> None:
    """Its exit status tells its health; a check would start in the container, but without the secrets of the entry point."""
    checks = {path.stem: re.findall(r"^HEALTHCHECK (.*)$", path.read_text(), re.MULTILINE) for path in DOCKERFILES}
    assert checks["train"] == ["NONE"]
    assert "emuedit" not in str(checks)


@each_file
def test_python_and_the_image_have_the_projects_versions(path: Path) -> None:
    text = path.read_text()
    version = re.search(r"ARG PYTHON_VERSION=(\d+\.\d+)", text)
    assert version is not None
    assert PROJECT["project"]["requires-python"].startswith(f">={version.group(1)}")
    assert f"-t emuedit-{path.stem}:{PROJECT['project']['version']}" in text
    extras = set(re.findall(r"--extra (\w+)", text))
    assert extras <= set(PROJECT["project"]["optional-dependencies"])


EXPORT = ("uv", "export", "--locked", "--offline", "--no-dev", "--no-emit-project", "--extra", "servers")
INSTALL = re.compile(r"uv pip install .*--require-hashes.* -r /tmp/packages\.txt")
NO_INDEX = re.compile(r"error sending request|dns error|connect|timed out|network connectivity is disabled", re.IGNORECASE)


def export_lock(*options: str) -> str:
    """The packages of the image without CUDA, as the Dockerfile exports them."""
    try:
        process = subprocess.run([*EXPORT, *options], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("uv is not here")
    if "not find" in process.stderr:
        pytest.skip("uv is not here")
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_the_lock_file_gives_what_the_image_without_cuda_installs() -> None:
    packages = export_lock("--prune", "torch", "--prune", "torchvision")
    assert not re.search(r"^(torch|torchvision|nvidia-\S+|triton)==", packages, re.MULTILINE)
    assert re.search(r"^mlflow==", packages, re.MULTILINE)
    torch = re.findall(r"^(torch|torchvision)==[^ ;\n]*", export_lock("--no-hashes"), re.MULTILINE)
    assert sorted(torch) == ["torch", "torchvision"]


def test_a_list_with_hashes_is_installed_without_looking_for_dependencies() -> None:
    """uv refuses a dependency without a hash, such as the torch that is left out of the list."""
    files = [path for folder in ("infra", ".ci", ".github") for path in (ROOT / folder).rglob("*") if path.is_file()]
    installs = [line for path in files for line in path.read_text().splitlines() if "--require-hashes" in line]
    assert installs
    assert not [line for line in installs if "--no-deps" not in line]


@pytest.mark.slow
def test_the_list_of_the_image_without_cuda_can_be_installed(tmp_path: Path) -> None:
    (install,) = INSTALL.findall((ROOT / "infra/docker/serve.Dockerfile").read_text())
    (tmp_path / "packages.txt").write_text(export_lock("--prune", "torch", "--prune", "torchvision"))
    changes = {"/opt/emuedit": sys.executable, "--no-cache": "--dry-run", "/tmp/packages.txt": str(tmp_path / "packages.txt")}
    command = [changes.get(word, word) for word in install.split()]
    try:
        process = subprocess.run([*command, "--target", tmp_path / "site"], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index is too slow for this test")
    if process.returncode and NO_INDEX.search(process.stderr):
        pytest.skip("the package index cannot be reached")
    assert process.returncode == 0, process.stderr
    assert "mlflow==" in process.stderr


@pytest.mark.slow
def test_what_torch_without_cuda_depends_on_has_the_versions_of_the_lock_file() -> None:
    """`--prune torch` leaves out what only torch depends on, too, such as sympy."""
    text = (ROOT / "infra/docker/serve.Dockerfile").read_text()
    (install,) = re.findall(r"uv pip install .*-r /tmp/torch\.txt", text)
    assert "--constraints /tmp/versions.txt" in install
    assert '"${export_lock[@]}" --no-hashes --output-file /tmp/versions.txt' in text
    assert re.search(r"^sympy==", export_lock("--no-hashes"), re.MULTILINE)
    assert not re.search(r"^sympy==", export_lock("--prune", "torch", "--prune", "torchvision"), re.MULTILINE)


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
