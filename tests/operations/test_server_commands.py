"""The commands up, status and down, as a person types them."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from emuedit import cli
from emuedit.operations import server_commands
from emuedit.operations.servers import ceph_store, local_ports, postgres_server, server_stack
from emuedit.operations.servers.background_process import ProcessRecord, read_record
from emuedit.operations.servers.http_probe import ask
from emuedit.operations.storage.bucket import Bucket, RemoteLocation
from tests.repository import ROOT

PREFECT_YAML = """\
name: small
prefect-version: ">=3.8,<3.9"
deployments:
  - name: once
    entrypoint: flow_file.py:hello
    work_pool: {name: local}
"""
FLOW = "from prefect import flow\n\n\n@flow\ndef hello():\n    return 1\n"


def test_status_without_servers_says_how_to_start_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status"]) == 1
    assert "`emuedit up` starts them" in capsys.readouterr().out
    assert cli.main(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["down"]) == 0
    assert list(tmp_path.iterdir()) == [], "want nothing written by commands that only look"


def test_port_bases_out_of_range_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["up", "--port-base", "80"]) == 2
    assert "want --port-base from 1024 to 65000, got 80" in capsys.readouterr().err


def test_up_takes_no_folder_with_files_of_others_and_keeps_a_gitignore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--data .` replaced the .gitignore of a project, so that git ignored all of it."""

    def refuse(*arguments: object) -> None:
        raise local_ports.PortError("no port is free")

    monkeypatch.setattr(local_ports, "choose_ports", refuse)  # before anything starts
    monkeypatch.chdir(tmp_path)
    Path("code.py").touch()
    Path(".gitignore").write_text("scratch\n")
    assert cli.main(["up", "--data", "."]) == 2
    assert "in which `emuedit up` was called before, got . with code.py; name another" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "code.py"]
    assert Path(".gitignore").read_text() == "scratch\n"
    Path("disk/lost+found").mkdir(parents=True)
    for folder in ("new", "new", "disk", server_commands.DATA):
        assert cli.main(["up", "--data", str(folder)]) == 1
        assert "no port is free" in capsys.readouterr().err
        assert Path(folder, ".gitignore").read_text() == "*\n"
        Path(server_commands.DATA).mkdir(exist_ok=True)
        Path(server_commands.DATA, "flow-runs.jsonl").touch()
    Path("ports.json").write_text('{"mlflow": 1}')
    assert cli.main(["up", "--data", "."]) == 1
    assert Path(".gitignore").read_text() == "scratch\n"


def test_only_up_changes_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if a port is in use by the children of a dead server, and after the installation of PostgreSQL and Ceph."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ceph_store.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(postgres_server, "_find_binaries", lambda version="": tmp_path)
    data = tmp_path / server_commands.DATA
    data.mkdir()
    with socket.socket() as child:
        child.bind(("127.0.0.1", 0))
        child.listen()
        port = child.getsockname()[1]
        (data / "ports.json").write_text(json.dumps({"mlflow": port, "prefect": 1, "postgres": 2, "worker": 3}))
        ProcessRecord("mlflow", 2**30, "a mark", f"http://127.0.0.1:{port}", 0.0, "").write(data)
        before = {path.name: path.read_bytes() for path in data.iterdir()}
        assert cli.main(["status", "--json"]) == 1
        states = {status["name"]: status["state"] for status in json.loads(capsys.readouterr().out)}
        assert states == {"mlflow": "dead", "prefect": "stopped"}
        assert {path.name: path.read_bytes() for path in data.iterdir()} == before
        assert cli.main(["down"]) == 0
        assert read_record(data, "mlflow") is None
        assert json.loads((data / "ports.json").read_text()) == json.loads(before["ports.json"])
        assert {path.name for path in data.iterdir()} == {"ports.json", "lock"}
        assert local_ports.choose_ports(data, ["mlflow"], 20_000)["mlflow"] != port, "want `up` to choose another"


def test_down_in_a_folder_without_servers_chooses_no_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / server_commands.DATA
    data.mkdir()
    (data / "flow-runs.jsonl").touch()
    assert cli.main(["down"]) == 0
    assert "nothing was running" in capsys.readouterr().out
    assert not (data / "ports.json").exists(), "commands would take MLflow's server for a stopped one"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_servers_come_up_answer_and_end(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(PREFECT_YAML)
    (tmp_path / "flow_file.py").write_text(FLOW)
    (tmp_path / "infra/prefect").mkdir(parents=True)
    (tmp_path / "infra/prefect/automations.yaml").write_text((ROOT / "infra/prefect/automations.yaml").read_text())
    secret = "hook-5ecret-of-the-test"
    (tmp_path / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ceph_store.S3_ENV}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home"), "EMUEDIT_GPU_SLOTS": "2"}
    environment["EMUEDIT_WEBHOOK_URL"] = f"https://example.org/{secret}"

    def emuedit(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [str(Path(sys.executable).parent / "emuedit"), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    try:
        up = emuedit("up", "--port-base", "18500")
        assert up.returncode == 0, up.stdout + up.stderr
        exports = dict(
            line.removeprefix("export ").split("=", 1) for line in (tmp_path / ".emuedit/env").read_text().splitlines()
        )
        assert ask(f"{exports['MLFLOW_TRACKING_URI']}/health", 10).is_success
        api, account = exports["PREFECT_API_URL"], exports["PREFECT_API_AUTH_STRING"]
        assert ask(f"{api}/deployments/name/hello/once", 10).status == 401, "any web page could send it"
        assert ask(f"{api}/deployments/name/hello/once", 10, account=account).is_success
        names = [automation["name"] for automation in ask(f"{api}/automations/filter", 10, {}, account).json()]
        assert sorted(names) == [
            "crashed-without-heartbeat",
            "notify-failed-or-late",
            "pending-too-long",
            "restart-crashed-scheduled-run",
        ]
        assert ask(f"{api}/v2/concurrency_limits/{server_stack.GPU_LIMIT}", 10, account=account).json()["limit"] == 2
        status = emuedit("status", "--json")
        assert status.returncode == 0, status.stdout
        services = json.loads(status.stdout)
        assert {service["name"] for service in services} >= {"mlflow", "prefect", "worker"}
        assert ("store" in {service["name"] for service in services}) is (shutil.which("radosgw") is not None)
        if store_url := exports.get("S3_ENDPOINT_URL"):
            keys = {"access_key": exports["AWS_ACCESS_KEY_ID"], "secret_key": exports["AWS_SECRET_ACCESS_KEY"]}
            assert Bucket(RemoteLocation(exports["EMUEDIT_BUCKET"], "some", store_url, **keys)).put_new("data", b"content")
            assert keys["secret_key"] not in up.stdout + up.stderr
        passwords = {path.name: path.read_text().strip() for path in (tmp_path / ".emuedit").glob("*.password")}
        assert account == f"emuedit:{passwords['prefect.password']}"
        assert not [word for word in (secret, *passwords.values()) if word in up.stdout + up.stderr]
        for path in (path for path in (tmp_path / ".emuedit").rglob("*") if path.suffix in {".log", ".pid", ".json"}):
            text = path.read_text(errors="replace")  # Ceph's database has binary files with these suffixes
            assert secret not in text, f"{path} has the URL of a webhook, which is a secret"
            assert exports.get("AWS_SECRET_ACCESS_KEY", secret) not in text, f"{path} has the key of the store"
            assert not [name for name, password in passwords.items() if password in text], f"{path} has a password"
    finally:
        down = emuedit("down")
    assert down.returncode == 0, down.stdout + down.stderr
    assert emuedit("status").returncode == 1
    assert not ask(f"{exports['MLFLOW_TRACKING_URI']}/health", 2).is_success
