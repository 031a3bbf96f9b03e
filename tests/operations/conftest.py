import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest

from emuedit.operations.storage import bucket_setup, dvc_remote
from emuedit.operations.storage.bucket import Bucket, RemoteLocation
from emuedit.operations.storage.object_probes import remove_folder
from tests.operations.faulty_proxy import FaultyProxy

Answers = dict[str, tuple[int, Any]]
"""Path of a URL -> status and JSON."""
MOTO = "moto"
STORES = [MOTO, pytest.param("real", marks=pytest.mark.real_s3)]
"""A test with the fixture `store_url` runs on both: moto in this process, and the store that S3_ENDPOINT_URL names."""


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine's AWS tools counts; keys that moto takes."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-aws-settings"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Endpoint of a store, to which the AWS_ variables have the keys. The real one needs S3_ACCESS_KEY and S3_SECRET_KEY too."""
    if request.param == MOTO:
        return str(request.getfixturevalue("moto_url"))
    url = os.environ.get("S3_ENDPOINT_URL")
    if not url:
        pytest.skip("wants S3_ENDPOINT_URL, S3_ACCESS_KEY and S3_SECRET_KEY; infra/s3/ceph-rgw.sh starts such a store")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ["S3_ACCESS_KEY"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ["S3_SECRET_KEY"])
    return url


@pytest.fixture
def make_bucket(aws_environment: None) -> Iterator[Callable[..., Bucket]]:
    """Creates a bucket of a new name in the store at a URL; it is emptied and deleted after the test."""
    buckets: list[Bucket] = []

    def make(url: str, versioned: bool = True) -> Bucket:
        bucket = Bucket(RemoteLocation.parse(f"s3://emuedit-test-{uuid4().hex[:16]}/some/prefix", url))
        bucket_setup.create_bucket(bucket)
        if versioned:
            bucket_setup.turn_on_versioning(bucket)
        buckets.append(bucket)
        return bucket

    yield make
    for bucket in buckets:
        everything = Bucket(RemoteLocation(bucket.location.bucket, "some", bucket.location.endpoint))
        remove_folder(everything, "prefix")
        bucket.call("delete_bucket")


@pytest.fixture
def proxy(moto_url: str, aws_environment: None) -> Iterator[FaultyProxy]:
    """A proxy before moto, without faults at first."""
    proxy = FaultyProxy(moto_url)
    yield proxy
    proxy.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], str]]:
    """Starts an HTTP server that gives prepared answers by path, and returns its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, answer = answers.get(self.path.split("?")[0], (404, {}))
                payload = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run_command(*words: str | Path, cwd: Path) -> str:
    process = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture
def shell() -> Callable[..., str]:
    """Runs a command and returns its output; a failure fails the test."""
    return run_command


@pytest.fixture(scope="session")
def empty_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    run_command("git", "init", "-q", "-b", "main", ".", cwd=root)
    for name, value in {"user.name": "Ada", "user.email": "ada@example.org"}.items():
        run_command("git", "config", name, value, cwd=root)
    (root / "data").mkdir()
    (root / "data/a.txt").write_text("first")
    with contextlib.chdir(root):
        for words in (["init", "-q"], ["add", "-q", "data"]):
            assert run_dvc_here(words) == 0, f"dvc {' '.join(words)}"
    run_command("git", "add", "-A", cwd=root)
    run_command("git", "commit", "-qm", "first data", cwd=root)
    return root


@pytest.fixture
def project(empty_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with DVC and one committed data folder, nothing pushed; the working folder is its root."""
    root = tmp_path / "project"
    shutil.copytree(empty_project, root, symlinks=True)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "true")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "dvc"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "dvc-global"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def dvc_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dvc that `emuedit remote` starts runs in this process; a second of a core less for each."""
    start_process: Any = subprocess.run

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        if command[1:5] != ["-W", "ignore", "-m", "dvc"]:
            process: subprocess.CompletedProcess[str] = start_process(command, **options)
            return process
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.chdir(options["cwd"]), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = run_dvc_here(command[5:])
        return subprocess.CompletedProcess(command, status, output.getvalue(), errors.getvalue())

    monkeypatch.setattr(dvc_remote, "subprocess", SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired))


def run_dvc_here(words: Sequence[str]) -> int:
    """The exit status of `dvc WORDS`, in this process."""
    from dvc.cli import main
    from dvc.logger import LoggerHandler

    for handler in logging.getLogger("dvc").handlers:
        if isinstance(handler, LoggerHandler):  # it has the stream of the moment at which DVC was imported, maybe closed by now
            handler.stream = sys.stderr if handler.level >= logging.WARNING else sys.stdout
    with warnings.catch_warnings(), patch.dict(os.environ, {"DVC_TEST": "true"}):  # else JSON goes to the first standard output
        warnings.simplefilter("ignore")  # of DVC's libraries
        return int(main(list(words)))


@pytest.fixture
def dvc_run(project: Path) -> Callable[..., None]:
    """Runs dvc in the project, in this process: importing it with S3 takes two seconds of a core each time."""

    def run(*words: str) -> None:
        with contextlib.chdir(project):
            assert run_dvc_here(words) == 0, f"dvc {' '.join(words)}"

    return run
