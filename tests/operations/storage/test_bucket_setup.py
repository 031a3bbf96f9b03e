"""The bucket of `emuedit remote init`: created, or used by credentials that may do no more than they need."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emuedit.operations.storage import access_probes, bucket_probes, bucket_setup
from emuedit.operations.storage.bucket import SCRATCH, Bucket, RemoteLocation
from emuedit.operations.storage.remote_error import RemoteError


class RestrictedBucket(Bucket):
    """A bucket in which one may list below the prefix only, as the roles of infra/terraform do."""

    def call(self, operation: str, **arguments: Any) -> Any:
        if operation == "list_objects_v2" and not arguments.get("Prefix", "").startswith(f"{self.location.prefix}/"):
            raise RemoteError("not allowed to list the whole bucket", "AccessDenied")
        return super().call(operation, **arguments)

    def with_addressing(self, style: str) -> Bucket:
        return RestrictedBucket(self.location, style)


@pytest.mark.slow
def test_a_role_that_may_list_below_the_prefix_only_can_use_the_bucket(moto_url: str, make_bucket: Callable[..., Bucket]) -> None:
    bucket = RestrictedBucket(make_bucket(moto_url).location)
    assert bucket_setup.create_bucket(bucket) is False
    assert access_probes.probe_credentials(bucket, "").status == access_probes.PASS
    assert access_probes.probe_addressing(bucket, "").status == access_probes.PASS


def refuse(monkeypatch: pytest.MonkeyPatch, code: str, *operations: str) -> list[str]:
    """Let the store refuse these operations; gives the list to which each call is added."""
    calls: list[str] = []
    answer = Bucket.call

    def call(bucket: Bucket, operation: str, **arguments: Any) -> Any:
        calls.append(operation)
        if operation in operations:
            raise RemoteError(f"refused: {code}", code)
        return answer(bucket, operation, **arguments)

    monkeypatch.setattr(Bucket, "call", call)
    return calls


def test_who_may_write_but_not_list_can_use_the_bucket(
    moto_url: str, make_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(moto_url, versioned=False)
    with monkeypatch.context() as patch:
        refuse(patch, "AccessDenied", "list_objects_v2")
        assert bucket_setup.create_bucket(bucket) is False
    assert not bucket.names(f"{SCRATCH}/"), "the object that showed it is deleted"


def test_who_may_neither_list_nor_write_cannot(
    moto_url: str, make_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(moto_url)
    with monkeypatch.context() as patch:
        calls = refuse(patch, "AccessDenied", "list_objects_v2", "put_object")
        with pytest.raises(RemoteError, match="refused: AccessDenied"):
            bucket_setup.create_bucket(bucket)
    assert calls == ["list_objects_v2", "put_object"]


@pytest.mark.slow
@pytest.mark.parametrize("code", ["MalformedXML", "InvalidArgument", "NotImplemented"])
def test_a_store_that_refuses_to_end_uploads_gets_the_other_rules(
    code: str, moto_url: str, make_bucket: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(moto_url)
    answer = Bucket.call

    def call(bucket: Bucket, operation: str, **arguments: Any) -> Any:
        if any("AbortIncomplete" in str(rule) for rule in arguments.get("LifecycleConfiguration", {}).get("Rules", [])):
            raise RemoteError("refused, as MinIO does", code)
        return answer(bucket, operation, **arguments)

    assert bucket_setup.old_versions_days(bucket) is None
    assert "remote init" in bucket_probes.probe_lifecycle(bucket, "").advice
    monkeypatch.setattr(Bucket, "call", call)
    assert bucket_setup.merge_lifecycle(bucket) == (0, False)
    names = [rule["ID"].partition("prefix-")[2] for rule in bucket_setup.lifecycle_rules(bucket)]
    assert names == ["remove-scratch", "remove-old-versions"]
    assert bucket_setup.old_versions_days(bucket) == 30
    outcome = bucket_probes.probe_lifecycle(bucket, "")
    assert (outcome.status, outcome.advice.partition(";")[0]) == ("warn", "the store refuses such a rule")


def test_rules_that_may_not_be_set_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_setup, "lifecycle_rules", lambda bucket: [])
    calls = refuse(monkeypatch, "AccessDenied", "put_bucket_lifecycle_configuration")
    with pytest.raises(RemoteError, match="AccessDenied"):
        bucket_setup.merge_lifecycle(Bucket(RemoteLocation("bucket", "prefix")))
    assert calls == ["put_bucket_lifecycle_configuration"]


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_wrong_credentials_are_said_at_once(code: str, aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = refuse(monkeypatch, code, "list_objects_v2")
    with pytest.raises(RemoteError, match=code):
        bucket_setup.create_bucket(Bucket(RemoteLocation("bucket", "prefix", "http://127.0.0.1:9")))
    assert calls == ["list_objects_v2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("region", "setting", "value", "place"),
    [
        (None, "AWS_DEFAULT_REGION", "eu-central-1", "eu-central-1"),
        ("eu-west-1", "AWS_DEFAULT_REGION", "eu-central-1", "eu-west-1"),
        (None, "AWS_DEFAULT_REGION", "us-east-1", None),
        (None, "AWS_DEFAULT_REGION", "aws-global", None),
        (None, "AWS_PROFILE", "frankfurt", "eu-central-1"),
    ],
)
def test_a_bucket_on_aws_is_created_in_the_region_of_the_settings(
    region: str | None, setting: str, value: str, place: str | None, aws_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto import mock_aws

    Path(os.environ["AWS_CONFIG_FILE"]).write_text("[profile frankfurt]\nregion = eu-central-1\n")
    with mock_aws():
        monkeypatch.setenv(setting, value)
        bucket = Bucket(RemoteLocation.parse("s3://my-bucket/emuedit", region=region))
        assert bucket_setup.create_bucket(bucket) is True
        assert bucket.call("get_bucket_location")["LocationConstraint"] == place


@pytest.mark.slow
def test_a_region_of_aws_is_not_sent_to_another_store(
    moto_url: str, aws_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    sent: list[dict[str, Any]] = []
    bucket = Bucket(RemoteLocation.parse("s3://another-bucket/emuedit"))
    bucket.client.meta.events.register("provide-client-params.s3.CreateBucket", lambda params, **_: sent.append(params))
    with contextlib.suppress(RemoteError):  # moto wants the region, as AWS does
        bucket_setup.create_bucket(bucket)
    assert sent == [{"Bucket": "another-bucket"}]
