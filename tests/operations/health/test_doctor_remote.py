"""`emuedit doctor` asks the remote of DVC as DVC does."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emuedit.operations.health import workspace_checks
from emuedit.operations.storage.bucket import Bucket, RemoteLocation


@pytest.mark.slow
def test_the_remote_is_asked_with_the_profile_and_the_region_of_dvc(
    moto_url: str, make_bucket: Callable[[str], Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bucket = make_bucket(moto_url)
    keys = [bucket.location.key("data"), f"{bucket.location.prefix}2/data"]  # the second is of another project
    uploads = {key: bucket.call("create_multipart_upload", Key=key)["UploadId"] for key in keys}
    (tmp_path / "credentials").write_text("[store]\naws_access_key_id = testing\naws_secret_access_key = testing-secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    Path(".dvc").mkdir()
    options = {"url": bucket.location.url, "endpointurl": moto_url, "region": "eu-north-1", "profile": "store"}
    lines = ["[core]", "    remote = s3", "['remote \"s3\"']", *(f"    {name} = {value}" for name, value in options.items())]
    Path(".dvc/config.local").write_text("\n".join(lines))
    sessions: list[RemoteLocation] = []
    monkeypatch.setattr(workspace_checks, "Bucket", lambda location: sessions.append(location) or Bucket(location))
    with monkeypatch.context() as without_keys:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            without_keys.delenv(name)
        (finding,) = workspace_checks.check_unfinished_uploads()
    assert (finding.status, finding.detail) == ("warn", f"1 older than a day in {bucket.location.url}")  # by the date of moto
    assert (sessions[0].region, sessions[0].profile) == ("eu-north-1", "store")
    command = f"emuedit remote init {bucket.location.url} --endpoint {moto_url} --region eu-north-1 --profile store`"
    assert command in finding.fix
    for key, upload_id in uploads.items():
        bucket.call("abort_multipart_upload", Key=key, UploadId=upload_id)


def test_unfinished_uploads_of_all_pages_are_counted() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    requests: list[dict[str, Any]] = []

    def paginate(**request: Any) -> list[dict[str, Any]]:
        requests.append(request)
        return [{"Uploads": [{"Initiated": start}] * 2}, {}, {"Uploads": [{"Initiated": start}]}]

    bucket = Bucket(RemoteLocation("bucket", "emuedit"))
    bucket.__dict__["client"] = SimpleNamespace(get_paginator=lambda name: SimpleNamespace(paginate=paginate))
    assert bucket.upload_starts() == [start] * 3
    assert requests == [{"Bucket": "bucket", "Prefix": "emuedit/"}]
