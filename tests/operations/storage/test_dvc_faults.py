"""Faults of the store under DVC, whose client (s3fs) is another than `Bucket`: nothing is lost, the same command completes it."""

import contextlib
import io
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emuedit.cli import main
from emuedit.operations.storage import dvc_remote
from emuedit.operations.storage.bucket import Bucket
from flows import publication
from tests.operations.conftest import run_dvc_here
from tests.operations.faulty_proxy import Fault, FaultyProxy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process", "few_repeats")]

N_FILES = 4
N_OBJECTS = N_FILES + 1
"""In the remote: the files of the folder, and its listing."""


@pytest.fixture
def few_repeats(aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is sent four times: twice by botocore for each of the two times by s3fs. By default 25 times, in 20 to 60 s."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 2)
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.0)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dvc that `emuedit remote` and a retrain start runs in this process, with this process's settings of botocore."""
    start_process: Any = subprocess.run

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        if "dvc" not in command:
            process: subprocess.CompletedProcess[str] = start_process(command, **options)
            return process
        status, output = run_dvc(options["cwd"], *command[command.index("dvc") + 1 :])
        return subprocess.CompletedProcess(command, status, output, "")

    patched = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(dvc_remote, "subprocess", patched)
    monkeypatch.setattr(publication, "subprocess", patched)


def run_dvc(folder: Path, *words: str) -> tuple[int, str]:
    """Exit status of `dvc WORDS` in this process, and its output and messages."""
    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        return run_dvc_here(words), output.getvalue()


@pytest.fixture
def remote(
    project: Path, proxy: FaultyProxy, moto_url: str, make_bucket: Callable[..., Bucket], in_process: None
) -> Iterator[Bucket]:
    """The bucket of the project's DVC remote, which DVC reaches through the proxy and this object does not."""
    shutil.rmtree(project / ".dvc/cache")
    for number in range(N_FILES - 1):
        (project / f"data/{number}.bin").write_bytes(random.Random(number).randbytes(200_000))
    bucket = make_bucket(proxy.url, versioned=False)
    dvc_remote.write_location(project, "s3", bucket.location, local=True)
    assert run_dvc(project, "add", "-q", "data")[0] == 0
    yield Bucket(replace(bucket.location, endpoint=moto_url))
    proxy.fault = Fault()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def objects(remote: Bucket) -> dict[str, bytes | None]:
    """Name below files/md5/ -> content, of all objects in the remote."""
    return {name.removeprefix("files/md5/"): remote.get(name) for name in remote.names("files/")}


@pytest.mark.parametrize("fault", [Fault(503, "SlowDown"), Fault(drop=True)], ids=["slow-down", "drop"])
def test_a_push_does_not_notice_a_passing_fault(fault: Fault, project: Path, remote: Bucket, proxy: FaultyProxy) -> None:
    proxy.fault = replace(fault, n_requests=2, method="PUT")
    status, output = run_dvc(project, "push")
    assert proxy.fault.n_requests == 0
    assert (status, output.strip()) == (0, f"{N_OBJECTS} files pushed")
    assert objects(remote) == contents(project / ".dvc/cache/files/md5")


def test_a_push_and_a_pull_that_were_cut_are_completed_by_the_next(
    project: Path, remote: Bucket, proxy: FaultyProxy, shell: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.fault = Fault(cut_upload=True, method="PUT", n_before=2)
    status, output = run_dvc(project, "push")
    assert status != 0
    assert "failed to push data to the cloud" in output
    cache = contents(project / ".dvc/cache/files/md5")
    arrived = objects(remote)
    assert len(arrived) == 2
    assert arrived.items() < cache.items(), "want no half object in the remote"
    assert not any(name.endswith(".dir") for name in arrived), "want no listing of files that are missing"

    proxy.fault = Fault()
    status, output = run_dvc(project, "push")
    assert (status, output.strip()) == (0, f"{N_OBJECTS - 2} files pushed"), "want what arrived not sent again"
    assert objects(remote) == cache
    assert "in sync" in run_dvc(project, "status", "--cloud")[1]

    shell("git", "commit", "-qam", "more data", cwd=project)
    clone = tmp_path / "clone"
    shell("git", "clone", "-q", str(project), str(clone), cwd=tmp_path)
    shutil.copy(project / ".dvc/config.local", clone / ".dvc/config.local")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "dvc of the clone"))  # which remembers nothing about the remote
    proxy.fault = Fault(cut=True, method="GET", n_before=3)
    status, output = run_dvc(clone, "pull")
    assert status != 0, output
    proxy.fault = Fault()
    assert run_dvc(clone, "pull")[0] == 0
    assert contents(clone / "data") == contents(project / "data")


def test_a_retrain_pushes_again_when_the_store_is_back(
    project: Path, remote: Bucket, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def come_back(seconds: float) -> None:
        pauses.append(seconds)
        proxy.fault = Fault()

    proxy.fault = Fault(500, "InternalError", method="PUT")
    with monkeypatch.context() as patch:
        patch.setattr(publication, "_PUSH_DELAYS_S", ())
        with pytest.raises(publication.PublicationError, match="run `emuedit remote check` for details, and `dvc push` to retry"):
            publication.push_data(project, come_back)
    assert objects(remote) == {}
    publication.push_data(project, come_back)
    assert len(pauses) == 1
    assert objects(remote) == contents(project / ".dvc/cache/files/md5")


def test_gc_deletes_nothing_if_the_store_fails_and_the_next_one_deletes_what_no_commit_needs(
    project: Path, remote: Bucket, proxy: FaultyProxy, shell: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_dvc(project, "push", "-q")[0] == 0
    shell("git", "commit", "-qam", "more data", cwd=project)
    needed = objects(remote)
    remote.put_new(f"files/md5/aa/{'a' * 30}", b"of a commit that was undone")
    proxy.fault = Fault(500, "InternalError", method="GET", n_before=2)  # `emuedit` itself asks for two objects before DVC lists
    assert main(["remote", "gc", "--yes"]) == 2
    assert "`dvc gc` failed with status" in capsys.readouterr().err
    assert len(objects(remote)) == N_OBJECTS + 1
    proxy.fault = Fault()
    assert main(["remote", "gc", "--yes"]) == 0
    assert "1 objects" in capsys.readouterr().out
    assert objects(remote) == needed
