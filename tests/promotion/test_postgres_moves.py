"""Concurrent promotions with the tables of MLflow in PostgreSQL, whose errors differ from those of SQLite."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import text

from emuedit.operations.servers import postgres_server
from emuedit.tracking import alias_moves, mlflow_client, move_tickets, registry
from tests.promotion.stores import number_at

N_VERSIONS = 8


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres_server.Postgres]:
    """A running PostgreSQL; the user `postgres` cannot enter the folders of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="emuedit-postgres-"))
    folder.chmod(0o755)
    postgres, reason = postgres_server.find_postgres(folder, free_port())
    if postgres is None:
        shutil.rmtree(folder)
        pytest.skip(reason)
    postgres.initialise()
    owner = {"user": postgres.user, "group": postgres.user, "extra_groups": []} if postgres.user else {}
    with (folder / "postgres.log").open("w") as log:
        server = subprocess.Popen(
            [*postgres.command, "-c", "fsync=off"], stdout=log, stderr=log, cwd="/", env={"PATH": os.defpath}, **owner
        )  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 60
        while not postgres.answers():
            assert server.poll() is None, (folder / "postgres.log").read_text()
            assert time.monotonic() < deadline, (folder / "postgres.log").read_text()
            time.sleep(0.2)
        postgres.create_databases()
        yield postgres
    finally:
        server.send_signal(signal.SIGINT)  # SIGTERM would wait for MLflow's connections
        server.wait(30)
        shutil.rmtree(folder)


@pytest.fixture
def many_versions(cluster: postgres_server.Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of MLflow's tables in a database of PostgreSQL, with versions of the model."""
    uri = cluster.uri("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow_client.client()
    client.create_registered_model(registry.MODEL_NAME)
    for number in range(1, N_VERSIONS + 1):
        client.create_model_version(registry.MODEL_NAME, f"nowhere/{number}")
    yield uri
    for name in (registry.MODEL_NAME, move_tickets.MOVES_MODEL):
        client.delete_registered_model(name)


def promote_at_once(n_promotions: int) -> None:
    """Promote versions concurrently, and check that nothing was lost."""
    with ThreadPoolExecutor(n_promotions) as pool:
        list(pool.map(lambda number: alias_moves.move_champion(number, "at once", check=False), range(1, n_promotions + 1)))
    moves = alias_moves.history()
    assert [move.state for move in moves] == ["done"] * n_promotions
    assert [move.before for move in moves] == [None, *(move.champion for move in moves[:-1])]
    assert (number_at("champion"), number_at("previous")) == (moves[-1].champion, moves[-2].champion)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_concurrent_promotions_form_one_chain(many_versions: str) -> None:
    promote_at_once(N_VERSIONS)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_conflicts_between_transactions_are_retried(
    many_versions: str, cluster: postgres_server.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with the strictest isolation refuses transactions that others would let wait."""
    conflicts: list[str] = []
    is_conflict = move_tickets.is_conflict

    def record(error: Exception) -> bool:
        if is_retried := is_conflict(error):
            conflicts.append(str(error))
        return is_retried

    monkeypatch.setattr(move_tickets, "is_conflict", record)
    cluster.ask("mlflow", "ALTER DATABASE mlflow SET default_transaction_isolation = 'serializable'")
    disconnect(cluster)
    try:
        promote_at_once(3)
    finally:
        cluster.ask("mlflow", "ALTER DATABASE mlflow RESET default_transaction_isolation")
        disconnect(cluster)
    assert any("could not serialize access" in text for text in conflicts)


@pytest.mark.slow
def test_a_deadlock_is_a_conflict(cluster: postgres_server.Postgres) -> None:
    """As MLflow's store reports it; PostgreSQL ends one of the transactions after a second."""
    store = SqlAlchemyStore(cluster.uri("mlflow"))
    barrier = Barrier(2)

    def lock(keys: tuple[int, int]) -> Exception | None:
        try:
            with store.ManagedSessionMaker(read_only=False) as session:
                session.execute(text(f"SELECT pg_advisory_xact_lock({keys[0]})"))
                barrier.wait(20)
                session.execute(text(f"SELECT pg_advisory_xact_lock({keys[1]})"))
        except MlflowException as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        (error,) = [error for error in pool.map(lock, ((1, 2), (2, 1))) if error is not None]
    assert "deadlock detected" in str(error)
    assert move_tickets.is_conflict(error)


def disconnect(cluster: postgres_server.Postgres) -> None:
    """End the connections of this process, so that new ones have the current settings."""
    SqlAlchemyStore(cluster.uri("mlflow")).engine.dispose()
