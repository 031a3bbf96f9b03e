import json
import re
from collections.abc import Callable

import pytest

from emuedit.operations.storage import access_probes, bucket_probes, object_probes, remote_check
from emuedit.operations.storage.bucket import Bucket, RemoteLocation
from emuedit.operations.storage.bucket_setup import merge_lifecycle
from emuedit.operations.storage.remote_check import NamedOutcome
from tests.operations.faulty_proxy import Fault, FaultyProxy

FOLDER = "scratch/check-test"


def run_all(bucket: Bucket) -> dict[str, NamedOutcome]:
    essential = [*access_probes.ACCESS_PROBES, ("write", object_probes.probe_write)]
    others = [*access_probes.SETTING_PROBES, *object_probes.OBJECT_PROBES, *bucket_probes.BUCKET_PROBES]
    return {line.name: line for line in remote_check.run_probes(bucket, FOLDER, essential, others)}


@pytest.fixture
def few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_probes, "N_LISTED", 3)


@pytest.mark.slow
@pytest.mark.parametrize("versioned", [True, False])
def test_a_good_store_passes_and_nothing_is_left(
    store_url: str, versioned: bool, make_bucket: Callable[..., Bucket], request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    n_listed = object_probes.N_LISTED
    assert n_listed > 1000, "want more than a page of S3"
    if versioned:  # deleting versions takes Ceph ten times as long
        n_listed = 3
    elif store_url == request.getfixturevalue("moto_url"):  # which takes 10 ms for a request
        n_listed = 21
        monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")  # keys of a page
    monkeypatch.setattr(object_probes, "N_LISTED", n_listed)
    bucket = make_bucket(store_url, versioned)
    merge_lifecycle(bucket)
    lines = run_all(bucket)
    failed = [line for line in lines.values() if line.outcome.status in ("fail", "not run")]
    assert not failed
    assert len(lines) == 15
    assert f"{n_listed} keys" in lines["list"].outcome.detail
    assert lines["versioning"].outcome.status == ("pass" if versioned else "warn")
    assert bucket.names("") == []
    assert bucket.versions("") == []


@pytest.mark.slow
def test_wrong_credentials_stop_the_check(proxy: FaultyProxy, make_bucket: Callable[..., Bucket], few_keys: None) -> None:
    bucket = make_bucket(proxy.url)
    proxy.fault = Fault(403, "SignatureDoesNotMatch")
    lines = list(run_all(bucket).values())
    proxy.fault = Fault()
    assert [line.outcome.status for line in lines[:4]] == ["pass", "pass", "fail", "not run"]
    assert "the secret does not belong to the access key" in lines[2].outcome.advice
    assert {line.outcome.status for line in lines[3:]} == {"not run"}
    assert remote_check.exit_status(lines) == 2
    table = remote_check.format_table(lines)
    assert "fail     credentials         SignatureDoesNotMatch" in table
    assert table.endswith("2 pass, 1 fail, 12 not run")
    assert json.loads(remote_check.format_json("s3://x", lines))["ok"] is False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("skew_s", "status", "detail"),
    [(20, "pass", ""), (-300, "warn", "ahead of"), (300, "warn", "behind"), (3600, "fail", "behind")],
)
def test_the_clock_is_compared(
    skew_s: float, status: str, detail: str, proxy: FaultyProxy, make_bucket: Callable[..., Bucket]
) -> None:
    bucket = make_bucket(proxy.url)
    proxy.fault = Fault(skew_s=skew_s)
    outcome = access_probes.probe_clock(bucket, FOLDER)
    assert outcome.status == status
    assert detail in outcome.detail


@pytest.mark.slow
def test_ignored_conditions_are_a_warning(proxy: FaultyProxy, make_bucket: Callable[..., Bucket]) -> None:
    bucket = make_bucket(proxy.url, versioned=False)
    proxy.fault = Fault(without_header="if-none-match")
    outcome = object_probes.probe_conditional_write(bucket, FOLDER)
    assert (outcome.status, outcome.detail) == ("warn", "`If-None-Match: *` is ignored: not enforced")
    assert "do not run `emuedit remote publish` concurrently" in outcome.advice


@pytest.mark.slow
def test_an_incomplete_listing_fails(proxy: FaultyProxy, make_bucket: Callable[..., Bucket], few_keys: None) -> None:
    bucket = make_bucket(proxy.url)
    proxy.fault = Fault(rewrite=lambda content: re.sub(rb"<Contents>.*?</Contents>", b"", content, count=1, flags=re.DOTALL))
    outcome = object_probes.probe_listing(bucket, FOLDER)
    proxy.fault = Fault()
    assert (outcome.status, outcome.detail) == ("fail", "2 of 3 keys listed")


@pytest.mark.slow
def test_a_wrong_range_fails(proxy: FaultyProxy, make_bucket: Callable[..., Bucket]) -> None:
    bucket = make_bucket(proxy.url)
    proxy.fault = Fault(rewrite=lambda content: content.replace(b"abcd", b"aaaa"))
    assert object_probes.probe_multipart(bucket, FOLDER).status == "fail"


@pytest.mark.slow
def test_changed_content_fails(proxy: FaultyProxy, make_bucket: Callable[..., Bucket]) -> None:
    bucket = make_bucket(proxy.url)
    assert object_probes.probe_read(bucket, FOLDER).detail == "got nothing right after the write"


@pytest.mark.slow
def test_a_rule_of_others_that_removes_data_fails(store_url: str, make_bucket: Callable[..., Bucket]) -> None:
    bucket = make_bucket(store_url)
    assert bucket_probes.probe_lifecycle(bucket, FOLDER).status == "warn"
    rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "some/"}, "Expiration": {"Days": 1}}
    logs = {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 1}}
    bucket.call("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [rule, logs]})
    assert merge_lifecycle(bucket) == (2, True)
    outcome = bucket_probes.probe_lifecycle(bucket, FOLDER)
    assert (outcome.status, outcome.detail) == ("fail", f"rule old removes data of {bucket.location.url}")
    bucket.call("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [logs]})
    assert merge_lifecycle(bucket) == merge_lifecycle(bucket) == (1, True)
    assert bucket_probes.probe_lifecycle(bucket, FOLDER).status == "pass"


@pytest.mark.slow
def test_unfinished_uploads_are_counted(
    store_url: str, make_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(store_url)
    key = bucket.location.key("files/x")
    upload = bucket.call("create_multipart_upload", Key=key)["UploadId"]
    monkeypatch.setattr(bucket_probes, "ABORT_UPLOADS_DAYS", 10_000)  # moto says that all uploads are of 2010
    assert bucket_probes.probe_uploads(bucket, FOLDER).detail.startswith("1 under way")
    monkeypatch.setattr(bucket_probes, "ABORT_UPLOADS_DAYS", -2)
    assert bucket_probes.probe_uploads(bucket, FOLDER).status == "warn"
    bucket.call("abort_multipart_upload", Key=key, UploadId=upload)


@pytest.mark.parametrize(
    ("endpoint", "status"), [("https://s.example.org", "pass"), ("http://127.0.0.1:1", "pass"), ("http://s.example.org", "warn")]
)
def test_plain_http_to_others_is_a_warning(endpoint: str, status: str, aws_environment: None) -> None:
    assert access_probes.probe_encryption(Bucket(RemoteLocation("bucket", endpoint=endpoint)), FOLDER).status == status


def test_without_credentials_the_endpoint_is_not_blamed(
    moto_url: str, aws_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    lines = run_all(Bucket(RemoteLocation("bucket", endpoint=moto_url)))
    failed = next(line for line in lines.values() if line.outcome.status == "fail")
    assert (failed.name, failed.outcome.detail) == ("credentials", "none found")
