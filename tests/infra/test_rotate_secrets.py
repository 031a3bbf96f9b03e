"""infra/compose/rotate-secrets, with a `docker` that keeps what it is sent, or fails after that."""

import subprocess
from pathlib import Path

import pytest

from tests.infra.fake_docker import FakeDocker

DATABASE_FILES = {"postgres_password", "mlflow_database_uri", "prefect_database_uri"}
KEEP_INPUT = """
case "$*" in
    exec*) cat > "$INPUT.$3"; [ "$3" != "$FAILS" ] || exit 1 ;;
esac
"""
"""The word after `exec -T` is the service; what it is sent is in the file INPUT.<service>."""


@pytest.fixture
def docker(tmp_path: Path) -> FakeDocker:
    return FakeDocker(tmp_path, KEEP_INPUT)


def rotate(docker: FakeDocker, *names: str, fails: str = "") -> "subprocess.CompletedProcess[str]":
    return docker.run("rotate-secrets", *names, INPUT=docker.bin / "input", FAILS=fails)


def sent(docker: FakeDocker, service: str) -> str:
    return (docker.bin / f"input.{service}").read_text()


def test_passwords_are_changed_in_the_databases_before_their_files(docker: FakeDocker) -> None:
    before = docker.secrets()
    assert rotate(docker, "webhook_url").returncode == 2
    assert rotate(docker).returncode == 2
    assert docker.secrets() == before
    process = rotate(docker, "prefect_auth", "postgres_password", "mlflow_admin_password")
    assert process.returncode == 0, process.stderr
    after = docker.secrets()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == DATABASE_FILES | {"mlflow_admin_password", "prefect_auth"}
    assert (sent(docker, "postgres"), sent(docker, "mlflow")) == (after["postgres_password"], after["mlflow_admin_password"])
    for name in ("mlflow_database_uri", "prefect_database_uri"):
        assert f":{after['postgres_password']}@" in after[name]
    words = [call.words for call in docker.calls]
    assert words[-1] == "up --detach --wait --force-recreate"
    assert not any(after[name] in " ".join(words) for name in changed), "arguments can be read by all users"
    assert set(after) == set(before)
    assert all((docker.secrets_folder / name).stat().st_mode & 0o777 == 0o644 for name in after)


@pytest.mark.parametrize("service", ["postgres", "mlflow"])
def test_a_password_that_a_database_may_have_is_not_lost(service: str, docker: FakeDocker) -> None:
    name = {"postgres": "postgres_password", "mlflow": "mlflow_admin_password"}[service]
    before = docker.secrets()
    process = rotate(docker, "prefect_auth", name, fails=service)
    assert process.returncode == 1
    draft = docker.secrets_folder / f"{name}.new"
    assert str(draft) in process.stderr
    assert draft.stat().st_mode & 0o777 == 0o600
    password = draft.read_text()
    assert docker.secrets() == before | {draft.name: password}, "want no file missing, also of passwords without a database"
    assert password == sent(docker, service) != before[name]
    assert not [call for call in docker.calls if call.words.startswith("up")]
    process = rotate(docker, "prefect_auth", name)
    assert process.returncode == 0, process.stderr
    assert password == sent(docker, service) == docker.secrets()[name], "the database may know this one only"
    assert not draft.exists()


def test_files_with_the_password_of_a_database_follow_it_if_a_later_step_fails(docker: FakeDocker) -> None:
    before = docker.secrets()
    assert rotate(docker, "postgres_password", "mlflow_admin_password", fails="mlflow").returncode == 1
    after = docker.secrets()
    assert {name for name in before if after[name] != before[name]} == DATABASE_FILES
    assert f":{sent(docker, 'postgres')}@" in after["mlflow_database_uri"]


def test_containers_see_the_new_password_in_the_file_that_they_mount(docker: FakeDocker) -> None:
    inode = (docker.secrets_folder / "postgres_password").stat().st_ino
    assert rotate(docker, "postgres_password").returncode == 0
    assert (docker.secrets_folder / "postgres_password").stat().st_ino == inode


def test_a_file_with_settings_of_this_machine_is_read_too(docker: FakeDocker) -> None:
    """Such as `gpus: all` of the worker, which would be made anew without its GPU."""
    (docker.infra / "compose.override.yaml").touch()
    assert rotate(docker, "postgres_password").returncode == 0
    assert len(docker.calls) == 3
    for call in docker.calls:
        assert call.files == ["compose.override.yaml", "compose.yaml"], call.words
