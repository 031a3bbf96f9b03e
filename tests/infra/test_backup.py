"""infra/compose/backup and restore: complete, for their owner only, and put back, on a real PostgreSQL too."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from emuedit.operations.servers.postgres_server import Postgres, find_postgres
from tests.infra.fake_docker import FakeDocker

ACCOUNTS = """
case "$*" in
    run*"mlflow cat /var/lib/mlflow/basic_auth.db") cat "$VOLUME/basic_auth.db" ;;
    run*"mlflow sh -c"*) cat > "$VOLUME/basic_auth.db" ;;
"""
ECHO = ACCOUNTS + '    exec*) [ -z "$FAILS" ] && echo "dump of $*" ;;\nesac\n'
"""Keeps the accounts in VOLUME; a dump is the words of the call, unless FAILS is set."""
REAL = ACCOUNTS + (
    '    exec*postgres*) script=$(printf %s "$6" | sed "s|/run/secrets|$SECRETS|g"); shift 6; sh -c "$script" "$@"\n'
    '        status=$?; [ -z "$FAILS" ] || exit 1; exit $status ;;\n'
    "esac\n"
)
"""Runs what is for PostgreSQL's container on this machine; with FAILS, the call fails after that."""


@pytest.fixture
def docker(tmp_path: Path) -> FakeDocker:
    docker = FakeDocker(tmp_path, ECHO)
    (docker.bin / "basic_auth.db").write_text("accounts")
    return docker


def index(docker: FakeDocker, start: str, word: str = "") -> int:
    """The place of the first call that starts with `start` and contains `word`."""
    return next(i for i, call in enumerate(docker.calls) if call.words.startswith(start) and word in call.words)


def test_a_backup_is_complete_and_for_its_owner_only(docker: FakeDocker, tmp_path: Path) -> None:
    (docker.infra / "compose.override.yaml").touch()
    folder = tmp_path / "backup"
    process = docker.run("backup", folder, VOLUME=docker.bin)
    assert process.returncode == 0, process.stderr
    for name in ("mlflow", "prefect"):
        assert (folder / f"{name}.dump").read_text().endswith(f" {name}\n")
    assert (folder / "basic_auth.db").read_text() == "accounts"
    assert {path.name: path.read_text() for path in (folder / "secrets").iterdir()} == docker.secrets()
    assert not [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]
    assert index(docker, "--profile serving stop", " mlflow") < index(docker, "run", "basic_auth.db"), "it may be written to"
    assert all(len(call.files) == 2 for call in docker.calls)


@pytest.mark.parametrize("place", ["present", "clone/backup"])
def test_a_backup_goes_to_a_new_folder_outside_the_clone(place: str, docker: FakeDocker, tmp_path: Path) -> None:
    (tmp_path / "present").mkdir()
    process = docker.run("backup", tmp_path / place, VOLUME=docker.bin)
    assert process.returncode != 0
    assert str(tmp_path / place) in process.stderr
    assert not docker.calls
    assert not (tmp_path / "clone/backup").exists()


def test_a_backup_that_failed_says_so_and_is_not_put_back(docker: FakeDocker, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    process = docker.run("backup", folder, VOLUME=docker.bin, FAILS="1")
    assert process.returncode != 0
    assert "done" not in process.stdout
    n_calls = len(docker.calls)
    process = docker.run("restore", folder, VOLUME=docker.bin)
    assert process.returncode == 2
    assert "want the file mlflow.dump" in process.stderr
    assert len(docker.calls) == n_calls


@pytest.mark.slow
def test_accounts_and_their_password_are_put_back_while_no_service_uses_the_databases(docker: FakeDocker, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    before = docker.secrets()
    assert docker.run("backup", folder, VOLUME=docker.bin).returncode == 0
    (docker.bin / "basic_auth.db").write_text("later accounts")
    assert docker.run("rotate-secrets", "mlflow_admin_password", "prefect_auth", VOLUME=docker.bin).returncode == 0
    process = docker.run("restore", folder, VOLUME=docker.bin)
    assert process.returncode == 0, process.stderr
    assert (docker.bin / "basic_auth.db").read_text() == "accounts"
    assert {name for name, value in docker.secrets().items() if value != before[name]} == {"prefect_auth"}
    *_, stop = (call.words for call in docker.calls if "stop" in call.words)
    assert {"worker", "champion", "mlflow", "prefect"} <= set(stop.split())


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this machine with the databases of the services, in a folder that its user may enter."""
    with tempfile.TemporaryDirectory(prefix="emuedit-backup-") as name:
        Path(name).chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        postgres, reason = find_postgres(Path(name), port)
        if postgres is None:
            pytest.skip(reason)
        postgres.initialise()
        process = subprocess.Popen(postgres.command, user=postgres.user, group=postgres.user, extra_groups=[], cwd="/")
        try:
            while not postgres.answers():
                assert process.poll() is None
                time.sleep(0.2)
            postgres.create_databases()
            yield postgres
        finally:
            process.terminate()
            process.wait()


@pytest.mark.slow
def test_databases_are_put_back_and_a_changed_password_is_known(tmp_path: Path, postgres: Postgres) -> None:
    docker = FakeDocker(tmp_path, REAL)
    (docker.secrets_folder / "postgres_password").write_text(postgres.password)
    (docker.bin / "basic_auth.db").write_text("accounts")
    variables: dict[str, str | Path] = {
        "PATH": f"{docker.bin}:{postgres.binaries}:/usr/bin:/bin", "PGPORT": str(postgres.port), "VOLUME": docker.bin,
        "SECRETS": docker.secrets_folder,
    }  # fmt: skip
    postgres.ask("mlflow", "CREATE TABLE runs (name text); INSERT INTO runs VALUES ('before')")
    process = docker.run("backup", tmp_path / "backup", **variables)
    assert process.returncode == 0, process.stderr
    postgres.ask("mlflow", "UPDATE runs SET name = 'after'; CREATE TABLE migrated (name text)")
    process = docker.run("restore", tmp_path / "backup", **variables)
    assert process.returncode == 0, process.stderr
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    assert postgres.ask("mlflow", "SELECT name FROM runs") == "before"
    assert postgres.ask("mlflow", tables) == "runs", "want no tables of the later version"
    assert docker.run("rotate-secrets", "postgres_password", **variables, FAILS="1").returncode == 1
    process = docker.run("rotate-secrets", "postgres_password", **variables)
    assert process.returncode == 0, process.stderr
    changed = replace(postgres, password=docker.secrets()["postgres_password"])
    assert changed.password != postgres.password
    assert changed.ask("mlflow", "SELECT name FROM runs") == "before", "the database had the new password at the second call"
