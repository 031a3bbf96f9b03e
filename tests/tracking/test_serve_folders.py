"""The start of a model server leaves the model of a running one alone."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from emuedit.tracking import serve_model

HOLD_OVER_EXEC = """
import os, sys
from pathlib import Path
from emuedit.tracking import serve_model
print(serve_model._make_folder(int(sys.argv[1])), flush=True)
os.execv(sys.executable, [sys.executable, "-S", "-c", "input()"])
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "emuedit"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_second_server_at_the_port_is_refused_and_deletes_nothing(cache: Path, host: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        weights = cache / f"served-{port}/model/weights"
        weights.parent.mkdir(parents=True)
        weights.write_text("of the running server")
        with pytest.raises(SystemExit) as refusal:
            serve_model.main(["--host", host, "--port", str(port)])
    assert f"serve_model: want a port at which this program can listen, got {port} of {host}" in str(refusal.value)
    assert "choose another --port" in str(refusal.value)
    assert weights.read_text() == "of the running server"
    assert [path.name for path in cache.iterdir()] == [f"served-{port}"]


def test_a_free_port_is_accepted_without_an_address_that_the_machine_lacks() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    serve_model._check_port("localhost", port)
    serve_model._check_port("0.0.0.0", port)
    serve_model._check_port("192.0.2.1", port)  # TEST-NET-1, which no machine has; the server reports it


@pytest.mark.slow
def test_a_server_that_still_answers_requests_keeps_its_folder_until_it_exits(cache: Path) -> None:
    """Its port is closed by then. The lock is held over `execve`, and the folder is used again after the exit."""
    command = [sys.executable, "-c", HOLD_OVER_EXEC, "8080"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        folder = Path(server.stdout.readline().strip())
        assert folder == cache / "served-8080"
        (folder / "weights").touch()
        with pytest.MonkeyPatch.context() as patch:
            locked: list[int] = []
            patch.setattr(serve_model.os, "set_inheritable", lambda descriptor, _: locked.append(descriptor))
            assert serve_model._make_folder(8080) == cache / "served-8080-2"
        assert (folder / "weights").exists()
        server.stdin.close()
    fcntl.flock(locked[0], fcntl.LOCK_UN)
    os.close(locked[0])
    again = subprocess.run(command, input="\n", capture_output=True, text=True, check=True)
    assert Path(again.stdout.strip()) == folder
    assert list(folder.iterdir()) == [], "want the model of the earlier start deleted"
