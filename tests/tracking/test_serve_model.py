"""A server that is asked to end answers the requests that it has."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.repository import ROOT

SLOW_MODEL = """\
import pathlib, time
import mlflow, pandas

class Slow(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: pandas.DataFrame, params=None) -> pandas.DataFrame:
        pathlib.Path(model_input["file"][0]).touch()
        time.sleep(2)
        return model_input

mlflow.models.set_model(Slow())
"""


def ask(url: str, file: Path) -> str:
    body = json.dumps({"dataframe_split": {"columns": ["file"], "data": [[str(file)]]}}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_request_that_runs_at_sigterm_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    (tmp_path / "slow.py").write_text(SLOW_MODEL)
    mlflow.pyfunc.save_model(str(tmp_path / "model"), python_model=str(tmp_path / "slow.py"), pip_requirements=["mlflow"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = ["--model-uri", str(tmp_path / "model"), "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-W", "ignore", "-m", "emuedit.tracking.serve_model", *words]
    process = subprocess.Popen(command, cwd=tmp_path)

    def is_up() -> bool:
        try:
            return bool(urllib.request.urlopen(f"{url}/ping", timeout=5).status == 200)
        except OSError:
            return False

    try:
        wait_for(is_up, process)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, url, tmp_path / "started")
            wait_for((tmp_path / "started").exists, process)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(urllib.error.URLError):
                urllib.request.urlopen(f"{url}/ping", timeout=5)
            assert str(tmp_path / "started") in answer.result(60)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
