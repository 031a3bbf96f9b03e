from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.data_manifest import DataManifest, data_hashes, orders_versions, publish, read_latest
from emuedit.operations.storage.remote_error import RemoteError
from tests.operations.faulty_proxy import Fault, FaultyProxy

FIELDS = {"commit": "c" * 40, "dvc_lock": "d" * 64, "data": {"data": "e" * 32}, "publisher": "Ada"}


def pointer(bucket: Bucket) -> DataManifest:
    return DataManifest.model_validate_json(bucket.get("latest.json") or b"")


@pytest.mark.slow
@pytest.mark.parametrize("versioned", [True, False])
def test_of_publishers_at_the_same_time_each_gets_a_number(
    store_url: str, versioned: bool, make_bucket: Callable[..., Bucket]
) -> None:
    location = make_bucket(store_url, versioned).location
    with ThreadPoolExecutor(4) as pool:
        published = list(pool.map(lambda number: publish(Bucket(location), {**FIELDS, "publisher": f"P{number}"}), range(4)))
    bucket = Bucket(location)
    stored = [DataManifest.model_validate_json(bucket.get(name) or b"") for name in bucket.names("manifests/")]
    assert stored == sorted(published, key=lambda manifest: manifest.number)
    assert [manifest.number for manifest in stored] == [1, 2, 3, 4]
    assert pointer(bucket) == read_latest(bucket) == stored[-1]


@pytest.mark.slow
def test_nothing_was_published(store_url: str, make_bucket: Callable[..., Bucket]) -> None:
    assert read_latest(make_bucket(store_url)) is None


@pytest.mark.slow
def test_a_publisher_that_dies_before_the_pointer_has_published(moto_url: str, make_bucket: Callable[..., Bucket]) -> None:
    bucket = make_bucket(moto_url)
    first = publish(bucket, FIELDS)
    bucket.put_new("manifests/000002.json", first.model_copy(update={"number": 2}).encode())
    latest = read_latest(bucket)
    assert latest is not None
    assert (pointer(bucket).number, latest.number) == (1, 2)
    assert publish(bucket, FIELDS).number == 3


@pytest.mark.slow
def test_a_write_whose_answer_is_lost_is_recognised(
    proxy: FaultyProxy, make_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(proxy.url, versioned=False)
    put_new = Bucket.put_new

    def put_and_lose(self: Bucket, name: str, body: bytes) -> bool:
        assert put_new(self, name, body)
        return put_new(self, name, body)  # what the client's own retry does

    monkeypatch.setattr(Bucket, "put_new", put_and_lose)
    assert publish(bucket, FIELDS).number == 1


@pytest.mark.slow
def test_without_conditional_writes_the_oldest_version_has_the_number(
    proxy: FaultyProxy, make_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(proxy.url)
    proxy.fault = Fault(without_header="if-none-match")
    rival = publish(bucket, {**FIELDS, "publisher": "rival"})
    names = bucket.names
    listings = iter([[], []])  # before the rival had published
    monkeypatch.setattr(bucket, "names", lambda folder, after="": next(listings, None) or names(folder, after))
    assert publish(bucket, FIELDS).number == 2
    assert DataManifest.model_validate_json(bucket.get("manifests/000001.json") or b"") == rival
    proxy.fault = Fault()


def deny(bucket: Bucket, operation: str) -> None:
    """The store refuses an operation of this bucket's client, as it does without the permission."""

    def refuse(**_: Any) -> tuple[Any, dict[str, Any]]:
        error = {"Code": "AccessDenied", "Message": "not authorized"}
        answer = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": 403}}
        return SimpleNamespace(status_code=403, headers={}), answer

    bucket.client.meta.events.register(f"before-call.s3.{operation}", refuse)


@pytest.mark.slow
def test_credentials_that_may_not_list_versions_publish_by_the_conditional_write(
    moto_url: str, make_bucket: Callable[..., Bucket]
) -> None:
    bucket = make_bucket(moto_url)
    assert orders_versions(bucket)
    restricted = Bucket(bucket.location)
    deny(restricted, "ListObjectVersions")
    assert not orders_versions(restricted)
    assert [publish(restricted, FIELDS).number for _ in range(2)] == [1, 2]
    assert bucket.names("manifests/") == ["manifests/000001.json", "manifests/000002.json"]
    assert pointer(bucket).number == 2


@pytest.mark.slow
def test_a_number_whose_manifest_was_deleted_is_published_without_the_right_to_read_versions(
    moto_url: str, make_bucket: Callable[..., Bucket]
) -> None:
    bucket = make_bucket(moto_url)
    publish(bucket, FIELDS)
    bucket.call("delete_object", Key=bucket.location.key("manifests/000001.json"))
    restricted = Bucket(bucket.location)
    deny(restricted, "GetObject")
    assert publish(restricted, FIELDS).number == 1


@pytest.mark.slow
def test_another_file_in_the_place_of_the_pointer(moto_url: str, make_bucket: Callable[..., Bucket]) -> None:
    bucket = make_bucket(moto_url)
    bucket.put_new("latest.json", b"{}")
    with pytest.raises(RemoteError, match=r"want a manifest in latest\.json"):
        read_latest(bucket)


def test_hashes_of_a_lock_file() -> None:
    outputs = [{"path": "b", "md5": "1" * 32 + ".dir"}, {"path": "a", "md5": "2" * 32}, {"path": "remote", "etag": "x"}]
    stages = {"first": {"cmd": "x", "outs": outputs}, "second": {"cmd": "y"}}
    assert data_hashes(stages) == {"a": "2" * 32, "b": "1" * 32 + ".dir"}
