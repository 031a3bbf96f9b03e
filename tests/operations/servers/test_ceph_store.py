"""The S3 store of `emuedit up`: where it is started, who uses it, and that it keeps data."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from emuedit.operations.servers import ceph_store, local_ports, server_control, server_stack
from emuedit.operations.servers.background_process import ProcessRecord
from emuedit.operations.servers.ceph_store import CephStore, find_store
from emuedit.operations.servers.server_control import Starter
from emuedit.operations.servers.server_stack import StackLayout
from emuedit.operations.storage.bucket import Bucket, RemoteLocation
from emuedit.operations.storage.remote_error import RemoteError

REMOTE = "[core]\n    remote = s3\n['remote \"s3\"']\n    url = s3://bucket/data\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder in a machine with Ceph, a shell without S3 settings, and an empty home and working folder."""
    (tmp_path / "home").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in (*ceph_store.S3_ENV, ceph_store.STORE_ENV, "MLFLOW_ARTIFACTS_DESTINATION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "data"


@pytest.fixture
def with_ceph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceph_store.shutil, "which", lambda tool: f"/usr/bin/{tool}")


def created(folder: Path) -> None:
    """The data of a store that was started before."""
    (folder / "store").mkdir()
    (folder / "store/complete").touch()


@pytest.mark.usefixtures("with_ceph")
def test_the_keys_are_random_and_only_their_owner_reads_them(folder: Path) -> None:
    store, text = find_store(folder, 8504, 8505)
    assert store is not None
    assert text == "Ceph at http://127.0.0.1:8504"
    assert (folder / "store.keys").stat().st_mode & 0o777 == 0o600
    assert min(len(store.access_key), len(store.secret_key)) >= 20
    assert find_store(folder, 8504, 8505)[0] == store, "want the same keys at every start"
    (folder / "store.keys").unlink()
    other, _ = find_store(folder, 8504, 8505)
    assert other is not None
    assert other.secret_key != store.secret_key


def test_without_ceph_or_with_a_setting_it_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceph_store.shutil, "which", lambda tool: None if tool == "ceph-osd" else f"/usr/bin/{tool}")
    store, text = find_store(folder, 8504, 8505)
    assert store is None
    assert text == "left out: Ceph is not installed (Debian: infra/s3/ceph-rgw.sh install)"
    monkeypatch.setattr(ceph_store.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setenv("EMUEDIT_STORE", "off")
    assert find_store(folder, 8504, 8505) == (None, "left out, as EMUEDIT_STORE says")
    assert list(folder.iterdir()) == []
    monkeypatch.setenv("EMUEDIT_STORE", "minio")
    with pytest.raises(ValueError, match="want EMUEDIT_STORE=off, or not set, got 'minio'; `off` starts no S3 store"):
        find_store(folder, 8504, 8505)


def set_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "team")


def write_credentials(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text("[default]\n")


def write_remote(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(REMOTE)


@pytest.mark.usefixtures("with_ceph")
@pytest.mark.parametrize(
    ("configure", "setting"),
    [(set_profile, "AWS_PROFILE"), (write_credentials, "~/.aws/credentials"), (write_remote, "DVC's remote s3://bucket/data")],
)
def test_its_keys_do_not_replace_those_of_another_store(
    configure: Callable[[Path, pytest.MonkeyPatch], None], setting: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(folder.parent / "home", monkeypatch)
    assert find_store(folder, 8504, 8505) == (None, f"left out: {setting} is for another store")
    created(folder)  # by an earlier `up`, before the setting was there: it keeps running
    store, text = find_store(folder, 8504, 8505)
    assert store is not None
    assert store.exports == {}
    assert text == f"Ceph at http://127.0.0.1:8504; keys not exported: {setting} is for another store"


@pytest.mark.usefixtures("with_ceph")
def test_a_shell_or_remote_that_uses_it_is_not_another_store_and_restarts_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commands() -> dict[str, ProcessRecord | object]:
        store, _ = find_store(folder, 8504, 8505)
        layout = StackLayout(folder, dict.fromkeys(server_stack.PORT_NAMES, 8500), None, store)
        return {service.name: service.command for service in server_stack.services(layout, has_worker=True)}

    first, _ = find_store(folder, 8504, 8505)
    assert first is not None
    before = commands()
    for name, value in first.exports.items():
        monkeypatch.setenv(name, value)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(f"{REMOTE}    endpointurl = {first.url}\n")
    assert find_store(folder, 8504, 8505)[0] == first
    for name, command in commands().items():
        old = before[name]
        record = ProcessRecord(name, 1, "", "", 0.0, old.settings, old.optional_settings)  # type: ignore[union-attr]
        assert record.has_settings_of(command), name  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("radosgw") is None, reason="wants Ceph; infra/s3/ceph-rgw.sh installs it")
def test_a_real_store_keeps_data_over_a_restart_at_another_port_and_refuses_other_keys(folder: Path) -> None:
    def up() -> CephStore:
        ports = local_ports.choose_ports(folder, ["store", "store-monitor"], 18600)
        store, _ = find_store(folder, ports["store"], ports["store-monitor"])
        assert store is not None
        with Starter(folder, folder, print) as starter:
            starter.start([server_stack._store(store)])
        store.create_bucket()
        return store

    def bucket_of(store: CephStore) -> Bucket:
        keys = {"access_key": store.access_key, "secret_key": store.secret_key}
        return Bucket(RemoteLocation(ceph_store.BUCKET, "some", store.url, **keys))

    def down(store: CephStore) -> None:
        assert server_control.end_all(folder, [server_stack._store(store)], print) == 1
        assert local_ports.is_free(store.port)
        assert local_ports.is_free(store.monitor_port)

    store = up()
    try:
        bucket = bucket_of(store)
        assert bucket.put_new("data.json", b"first")
        assert bucket.is_versioned()
        assert store.folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(RemoteError, match="secret"):
            bucket_of(replace(store, secret_key="another")).sizes("")
        logs = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".log", ".pid", ".json", ".conf")]
        assert logs
        assert not any(store.secret_key in path.read_text(errors="replace") for path in logs)
        assert [status.state for status in server_control.statuses(folder, [server_stack._store(store)])] == ["running"]
    finally:
        down(store)
    (folder / "ports.json").write_text("{}")
    ports = local_ports.choose_ports(folder, ["store", "store-monitor"], 18650)
    assert ports["store-monitor"] != store.monitor_port
    again = up()
    try:
        assert again.url != store.url
        assert bucket_of(again).get("data.json") == b"first"
    finally:
        down(again)
