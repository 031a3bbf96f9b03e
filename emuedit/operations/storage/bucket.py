"""A bucket and a prefix in S3-compatible storage: its location and its client."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from typing import Any
from urllib.parse import urlsplit

from emuedit.http_requests import is_local
from emuedit.operations.storage.remote_error import RemoteError, explained

CONNECT_TIMEOUT_S = 4.0
READ_TIMEOUT_S = 10.0
"""Time limit for the start of an answer, in seconds. With ATTEMPTS, an operation fails within about half a minute."""
ATTEMPTS = 3
THREADS = 16
"""Number of concurrent requests."""
SCRATCH = "scratch"
"""Folder below the prefix for temporary objects; the lifecycle rule removes leftovers of killed processes."""

_DELETED_AT_ONCE = 50  # S3 allows 1,000, but Ceph deletes only about 30 versions per second
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class RemoteLocation:
    """A prefix of a bucket and its access. `endpoint` and `region`: None: from the AWS settings of the machine.

    The keys are set only if the settings of the DVC remote contain them; otherwise they come from the environment or the profile.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None
    verify: bool | str | None = None

    @classmethod
    def parse(
        cls, url: str, endpoint: str | None = None, region: str | None = None, profile: str | None = None
    ) -> "RemoteLocation":
        """From `s3://bucket/prefix`. Raises RemoteError for another form, and for a URL with credentials."""
        if any("@" in urlsplit(text).netloc or urlsplit(text).query for text in (url, endpoint or "")):
            raise RemoteError(
                "want a URL without credentials, because it is written to a file; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        parts = urlsplit(url)
        if parts.scheme != "s3" or not _BUCKET_NAME.fullmatch(parts.netloc):
            raise RemoteError(
                f"want s3://bucket/prefix with a bucket of 3 to 63 lower-case letters, digits, dots, hyphens; got {url}"
            )
        if endpoint is not None and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
            raise RemoteError(f"want an endpoint such as https://store.example.org, got {endpoint}; add http:// or https://")
        return cls(parts.netloc, parts.path.strip("/"), endpoint, region, profile)

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def __str__(self) -> str:
        return f"{self.url} at {self.endpoint}" if self.endpoint else self.url

    def key(self, name: str) -> str:
        """The full key of the object `name` below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name


class Bucket:
    """Client for a location. Every method raises RemoteError if the store or the network fails."""

    def __init__(self, location: RemoteLocation, addressing_style: str = "auto") -> None:
        self.location = location
        self._addressing_style = addressing_style

    @cached_property
    def client(self) -> Any:
        """The boto3 client; failures inside `explained()` become RemoteError."""
        from botocore.config import Config

        endpoint = self.location.endpoint
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            signature_version="s3v4",  # presigned links have an older signature by default, which newer stores refuse
            max_pool_connections=20,
            proxies={} if endpoint and is_local(endpoint) else None,  # None: those of the environment
            s3=None if self._addressing_style == "auto" else {"addressing_style": self._addressing_style},
        )  # fmt: skip
        session = self._session
        with self.explained():
            return session.client("s3", endpoint_url=endpoint, config=config, verify=self.location.verify)

    @cached_property
    def _session(self) -> Any:
        import boto3
        import botocore.session

        place = self.location
        session = botocore.session.get_session()
        session.lazy_register_component("data_loader", lambda: _service_models(session.get_config_variable("data_path")))
        with self.explained():
            result = boto3.Session(
                place.access_key, place.secret_key, place.session_token, place.region, session, profile_name=place.profile
            )
        paths = session.get_component("data_loader").search_paths
        paths[:] = dict.fromkeys(paths)  # each session adds boto3's path again
        return result

    def credentials(self) -> Any:
        """botocore's credentials, with `method` (their source) and `token`; None if there are none."""
        session = self._session
        with self.explained():
            return session.get_credentials()

    def explained(self) -> AbstractContextManager[None]:
        """Context that converts failures of boto3 and the network to RemoteError."""
        return explained(str(self.location), READ_TIMEOUT_S)

    def call(self, operation: str, **arguments: Any) -> Any:
        """An operation of the client on this bucket, such as `call("put_object", Key=..., Body=...)`."""
        client = self.client
        with self.explained():
            return getattr(client, operation)(Bucket=self.location.bucket, **arguments)

    def get(self, name: str) -> bytes | None:
        """The content of an object below the prefix; None if there is none."""
        client = self.client
        try:
            with self.explained():
                answer = client.get_object(Bucket=self.location.bucket, Key=self.location.key(name))
                return answer["Body"].read()
        except RemoteError as error:
            if error.code == "NoSuchKey":
                return None
            raise

    def put_new(self, name: str, body: bytes, content_type: str = "application/json") -> bool:
        """Write an object unless it exists; False if it does. Stores that ignore the condition always write."""
        key = self.location.key(name)
        try:
            self.call("put_object", Key=key, Body=body, ContentType=content_type, IfNoneMatch="*")
        except RemoteError as error:
            if error.code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                return False
            raise
        return True

    def names(self, folder: str, after: str = "") -> list[str]:
        """Sorted names below the prefix that start with `folder` and follow `after`; all pages of the listing."""
        start = len(self.location.key(""))
        return [key[start:] for key in self.sizes(folder, after)]

    def sizes(self, folder: str, after: str = "") -> dict[str, int]:
        """Full key -> bytes of the objects that `names` lists."""
        client = self.client
        more = {"StartAfter": self.location.key(after)} if after else {}
        with self.explained():
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.location.bucket, Prefix=self.location.key(folder), **more
            )
            return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def upload_starts(self) -> list[datetime]:
        """Start of each unfinished multipart upload below the prefix; all pages of the listing."""
        client = self.client
        with self.explained():
            pages = client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.location.bucket, Prefix=self.location.key("")
            )
            return [upload["Initiated"] for page in pages for upload in page.get("Uploads", [])]

    def is_versioned(self) -> bool | None:
        """Whether deleted and replaced objects are kept as old versions; False also if the store does not support versions.

        None if the credentials may not read this setting.
        """
        try:
            return bool(self.call("get_bucket_versioning").get("Status") == "Enabled")
        except RemoteError as error:
            if error.code == "AccessDenied":
                return None
            if error.code == "NotImplemented":
                return False
            raise

    def versions(self, folder: str) -> list[dict[str, str]]:
        """{"Key", "VersionId"} of all versions and delete markers below the prefix that start with `folder`, the newest first."""
        client = self.client
        with self.explained():
            pages = client.get_paginator("list_object_versions").paginate(
                Bucket=self.location.bucket, Prefix=self.location.key(folder)
            )
            entries = [entry for page in pages for kind in ("Versions", "DeleteMarkers") for entry in page.get(kind, [])]
        return [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in entries]

    def delete(self, entries: Sequence[Mapping[str, str]]) -> None:
        """Delete objects {"Key": full key}, or versions with a "VersionId". Raises RemoteError if a deletion fails."""
        self.client  # noqa: B018 - created before the threads, because creating a client is not thread-safe
        batches = [entries[start : start + _DELETED_AT_ONCE] for start in range(0, len(entries), _DELETED_AT_ONCE)]
        with ThreadPoolExecutor(THREADS) as pool:
            answers = pool.map(lambda batch: self.call("delete_objects", Delete={"Objects": batch, "Quiet": True}), batches)
            failures = [failure for answer in answers for failure in answer.get("Errors", [])]
        if failures:
            code, key = str(failures[0].get("Code")), failures[0]["Key"]
            raise RemoteError(f"could not delete {key} and {len(failures) - 1} more: the store answered {code}", code)

    def with_addressing(self, style: str) -> "Bucket":
        """The same bucket, addressed by 'path' or by 'virtual' host name."""
        return Bucket(self.location, style)


@cache
def _service_models(data_path: str | None) -> Any:
    """botocore's loader of service descriptions, cached because each session would take 0.2 s to read them."""
    from botocore.loaders import create_loader

    return create_loader(data_path)
