"""Whatever goes wrong between here and the store ends within seconds, in an error that says what to do."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from emuedit.operations.storage import bucket as bucket_module
from emuedit.operations.storage.bucket import Bucket, RemoteLocation
from emuedit.operations.storage.remote_error import RemoteError, explained
from tests.operations.faulty_proxy import Fault, FaultyProxy


@pytest.fixture
def remote(proxy: FaultyProxy, make_bucket: Callable[..., Bucket]) -> Iterator[Bucket]:
    """A bucket behind the proxy."""
    bucket = make_bucket(proxy.url)
    bucket.call("put_object", Key=bucket.location.key("object"), Body=b"content")
    yield bucket
    proxy.fault = Fault()


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats come at once, not after up to three seconds in all as without this in `test_no_store_at_all`."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_backoff")
@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (Fault(500, "InternalError"), "the store failed with status 500"),
        (Fault(502, "BadGateway"), "the store failed with status 502"),
        (Fault(503, "SlowDown"), "limits the rate of requests"),
        (Fault(429, "TooManyRequests"), "limits the rate of requests"),
        (Fault(503, "XMinioServerNotInitialized"), r"not available \(503\)"),
        (Fault(403, "InvalidAccessKeyId"), "the store does not know the access key"),
        (Fault(403, "SignatureDoesNotMatch"), "the secret does not belong to the access key"),
        (Fault(400, "ExpiredToken"), "the credentials have expired; log in again"),
        (Fault(403, "AccessDenied"), "ask the owner of the bucket"),
        (Fault(403, "RequestTimeTooSkewed"), "timedatectl"),
        (Fault(404, "NoSuchBucket"), "emuedit remote init"),
        (Fault(403, "QuotaExceeded"), "quota of the store is used up"),
        (Fault(507, "XMinioStorageFull"), "the store is full"),
        (Fault(400, "IllegalLocationConstraintException"), "--region"),
        (Fault(418, "Teapot"), "Teapot: as asked"),
        (Fault(drop=True), "the connection was closed"),
        (Fault(cut=True), "the connection was closed"),
    ],
    ids=lambda value: value.code or ("drop" if value.drop else "cut") if isinstance(value, Fault) else "",
)
def test_every_fault_has_its_advice_within_seconds(fault: Fault, advice: str, remote: Bucket, proxy: FaultyProxy) -> None:
    proxy.fault = fault
    start = time.monotonic()
    with pytest.raises(RemoteError, match=advice) as caught:
        remote.call("put_object", Key="x", Body=b"") if not fault.cut else remote.get("object")
    assert time.monotonic() - start < 15
    assert str(remote.location) in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("no_backoff")
def test_a_slow_store_is_given_up(remote: Bucket, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "READ_TIMEOUT_S", 0.3)
    proxy.fault = Fault(delay_s=2)
    start = time.monotonic()
    with pytest.raises(RemoteError, match=r"no answer within 0\.3 s"):
        Bucket(remote.location).get("object")
    assert time.monotonic() - start < 10


@pytest.mark.slow
@pytest.mark.usefixtures("no_backoff")
@pytest.mark.parametrize(
    "fault", [Fault(503, "SlowDown", n_requests=1), Fault(500, "InternalError", n_requests=2), Fault(drop=True, n_requests=1)]
)
def test_a_passing_fault_is_not_noticed(fault: Fault, remote: Bucket, proxy: FaultyProxy) -> None:
    proxy.fault = fault
    assert remote.get("object") == b"content"


@pytest.mark.slow
def test_a_refusal_is_not_repeated(remote: Bucket, proxy: FaultyProxy) -> None:
    proxy.fault, proxy.n_requests = Fault(403, "SignatureDoesNotMatch"), 0
    with pytest.raises(RemoteError):
        remote.get("object")
    assert proxy.n_requests == 1


@pytest.mark.parametrize(
    ("status", "code", "operation", "text"),
    [
        (503, "503", "ListObjectsV2", r"not available \(503\): the store, or the server behind its load balancer, is down"),
        (403, "403", "ListObjectsV2", "something between here and the store refused with 403; check proxies and NO_PROXY"),
        (403, "", "PutObject", "something between here and the store refused with 403; check proxies and NO_PROXY"),
        (403, "403", "HeadObject", "the credentials are valid, but not allowed to do this"),
        (403, "AccessDenied", "ListObjectsV2", "the credentials are valid, but not allowed to do this"),
    ],
)
def test_an_answer_without_a_code_of_s3_is_not_taken_for_the_stores(status: int, code: str, operation: str, text: str) -> None:
    """Proxies and load balancers answer with HTML, for which botocore gives the status as the code; HEAD has no content."""
    answer: Any = {"Error": {"Code": code, "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(RemoteError, match=f"s3://bucket: {text}"), explained("s3://bucket", 1.0):
        raise ClientError(answer, operation)


@pytest.mark.slow
@pytest.mark.usefixtures("no_backoff")
def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    aws_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://ada:hidden@127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"the proxy http://\S+@127\.0\.0\.1:9 does not answer.* NO_PROXY") as caught:
        Bucket(RemoteLocation("bucket", endpoint="https://store.example.org")).get("object")
    assert "hidden" not in str(caught.value)


@pytest.mark.slow
def test_no_store_at_all(aws_environment: None) -> None:
    start = time.monotonic()
    with pytest.raises(RemoteError, match="no server answers at this address; start the store, or correct the endpoint"):
        Bucket(RemoteLocation("bucket", endpoint="http://127.0.0.1:9")).get("object")
    assert time.monotonic() - start < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_store_of_this_machine_is_reached_past_a_proxy(
    name: str, moto_url: str, make_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(moto_url.replace("127.0.0.1", name))
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert Bucket(bucket.location).put_new("object", b"content")


def test_no_credentials(moto_url: str, aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RemoteError, match="no complete credentials; set AWS_ACCESS_KEY_ID"):
        Bucket(RemoteLocation("bucket", endpoint=moto_url)).get("object")
    with pytest.raises(RemoteError, match="nobody"):
        Bucket(RemoteLocation("bucket", endpoint=moto_url, profile="nobody")).get("object")


@pytest.mark.slow
@pytest.mark.real_s3
@pytest.mark.parametrize("store_url", ["real"], indirect=True)
@pytest.mark.parametrize(
    ("variable", "code"), [("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId")]
)
def test_a_real_store_refuses_wrong_keys(
    variable: str, code: str, store_url: str, make_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(store_url)
    with monkeypatch.context() as patch:
        patch.setenv(variable, "wrong")
        with pytest.raises(RemoteError) as caught:
            Bucket(bucket.location).get("object")
    assert caught.value.code == code


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/prefix", "s3://bucket/prefix?secret=secret"])
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RemoteError, match="want a URL without credentials") as caught:
        RemoteLocation.parse(url)
    assert "secret@" not in str(caught.value)
    with pytest.raises(RemoteError, match="want a URL without credentials"):
        RemoteLocation.parse("s3://bucket", endpoint="https://key:secret@store.example.org")


@pytest.mark.parametrize("url", ["bucket/prefix", "https://bucket/prefix", "s3://", "s3://B/prefix", "s3://a"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(RemoteError, match="want s3://bucket/prefix"):
        RemoteLocation.parse(url)
