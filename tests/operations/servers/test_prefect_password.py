"""The Prefect server of `emuedit up` requires a password, which web pages and other accounts do not have."""

from pathlib import Path

from emuedit.operations.servers import password_file, server_stack
from emuedit.operations.servers.background_process import BackgroundCommand, ProcessRecord
from emuedit.operations.servers.server_stack import StackLayout


def commands(folder: Path, password: str) -> dict[str, BackgroundCommand]:
    layout = StackLayout(folder, dict.fromkeys(server_stack.PORT_NAMES, 8500), None, prefect_password=password)
    return {service.name: service.command for service in server_stack.services(layout, has_worker=True)}


def test_it_requires_what_its_clients_send_and_serves_its_own_pages_only(tmp_path: Path) -> None:
    by_name = commands(tmp_path, "pa55-of-the-test")
    assert by_name["prefect"].environment["PREFECT_SERVER_API_AUTH_STRING"] == "emuedit:pa55-of-the-test"
    assert by_name["worker"].environment["PREFECT_API_AUTH_STRING"] == "emuedit:pa55-of-the-test"
    origins = by_name["prefect"].environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]
    assert origins == "http://127.0.0.1:8500,http://localhost:8500"


def test_a_server_without_the_password_is_started_again_and_so_is_its_worker(tmp_path: Path) -> None:
    after = commands(tmp_path, "pa55-of-the-test")
    restarted = []
    for name, command in commands(tmp_path, "").items():
        record = ProcessRecord(name, 1, "", "", 0.0, command.settings, command.optional_settings)
        restarted += [] if record.has_settings_of(after[name]) else [name]
        ProcessRecord(name, 1, "", "", 0.0, after[name].settings, after[name].optional_settings).write(tmp_path)
        assert "pa55" not in (tmp_path / f"{name}.pid").read_text()
    assert restarted == ["prefect", "worker"]


def test_the_password_is_kept_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "prefect.password"
    password = password_file.read_password(path)
    assert password == password_file.read_password(path) != password_file.read_password(tmp_path / "another.password")
    assert len(password) == 32
    assert path.stat().st_mode & 0o777 == 0o600
