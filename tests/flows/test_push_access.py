"""The attempt to write to the remote before a run, with a store that refuses or fails."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from emuedit.failures import FailureKind
from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.remote_error import RemoteError
from flows import publication, push_access
from flows.publication import PublicationError
from tests.operations.conftest import aws_environment, make_bucket, moto_url, proxy
from tests.operations.faulty_proxy import Fault, FaultyProxy

__all__ = ["aws_environment", "make_bucket", "moto_url", "proxy"]


@pytest.fixture
def remote(proxy: FaultyProxy, make_bucket: Callable[..., Bucket], moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The bucket of the default DVC remote, behind the proxy."""
    bucket = make_bucket(moto_url, versioned=False)
    settings = {"core.remote": "s3", "remote.s3.url": bucket.location.url, "remote.s3.endpointurl": proxy.url}
    monkeypatch.setattr(publication.dvc_remote, "read_settings", lambda root: settings)
    return bucket


@pytest.mark.slow
def test_a_remote_that_can_be_written_is_left_as_it_was(remote: Bucket, tmp_path: Path) -> None:
    pauses: list[float] = []
    publication.check_access(tmp_path, pauses.append)
    assert (remote.names(""), pauses) == ([], [])


@pytest.mark.slow
def test_a_wrong_secret_stops_before_the_run_without_a_retry(remote: Bucket, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.fault = Fault(403, "SignatureDoesNotMatch", method="PUT")
    pauses: list[float] = []
    words = "data could not be pushed after this run: .*the secret does not belong to the access key; correct AWS_ACCESS_KEY_ID"
    with pytest.raises(PublicationError, match=words):
        publication.check_access(tmp_path, pauses.append)
    assert pauses == []


@pytest.mark.slow
def test_a_store_that_fails_for_a_moment_does_not_stop_a_run(remote: Bucket, proxy: FaultyProxy, tmp_path: Path) -> None:
    def come_back(seconds: float) -> None:
        pauses.append(seconds)
        proxy.fault = Fault()

    pauses: list[float] = []
    proxy.fault = Fault(503, "SlowDown", method="PUT")
    publication.check_access(tmp_path, come_back)
    assert pauses == [10.0]
    assert remote.names("") == []


@pytest.mark.slow
def test_a_permission_to_write_is_enough(remote: Bucket, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.fault = Fault(403, "AccessDenied", method="GET")  # listing what to delete
    publication.check_access(tmp_path, pytest.fail)


@pytest.mark.slow
def test_a_push_that_fails_for_a_wrong_secret_is_not_repeated(
    remote: Bucket, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_pushes: list[str] = []

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        n_pushes.append(command[-1])
        return subprocess.CompletedProcess(command, 1, "", "ERROR: failed to push data to the cloud - 3 files failed to upload")

    monkeypatch.setattr(publication.subprocess, "run", run)
    proxy.fault = Fault(403, "InvalidAccessKeyId", method="PUT")
    with pytest.raises(PublicationError, match=r"data were not pushed: .*the store does not know the access key"):
        publication.push_data(tmp_path, pytest.fail)
    assert n_pushes == ["push"]


def test_missing_credentials_are_no_failure_of_the_network(remote: Bucket, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        with pytest.raises(RemoteError, match="no complete credentials") as caught:
            push_access.try_write(tmp_path)
    assert push_access.failure_kind(caught.value) is FailureKind.OTHER


def set_settings(monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, str]) -> None:
    """Settings of DVC, instead of those of a workspace."""
    monkeypatch.setattr(push_access.dvc_remote, "read_settings", lambda root: settings)


@pytest.mark.parametrize("option", push_access._OTHER_CREDENTIALS)
def test_credentials_that_only_dvc_reads_are_not_tried(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets: list[Bucket] = []
    monkeypatch.setattr(push_access, "_try_bucket", buckets.append)
    settings = {"core.remote": "s3", "remote.s3.url": "s3://no-such-bucket/x"}
    set_settings(monkeypatch, settings | {f"remote.s3.{option}": "x"})
    push_access.try_write(tmp_path)
    assert not buckets
    set_settings(monkeypatch, settings)
    push_access.try_write(tmp_path)
    assert [bucket.location.bucket for bucket in buckets] == ["no-such-bucket"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    settings = {"core.remote": "local", "remote.local.url": str(tmp_path / "file/remote")}
    set_settings(monkeypatch, settings)
    with pytest.raises(RemoteError, match=r"want a folder that can be written, got .*/file/remote \(Not a directory\)") as caught:
        push_access.try_write(tmp_path)
    assert push_access.failure_kind(caught.value) is FailureKind.OTHER
    set_settings(monkeypatch, settings | {"remote.local.url": str(tmp_path / "new/remote")})
    push_access.try_write(tmp_path)
    assert not list((tmp_path / "new/remote").iterdir())
