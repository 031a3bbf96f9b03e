"""Probes of the access to a store: credentials, clock, region, addressing and transport encryption."""

import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from emuedit.http_requests import is_local
from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.remote_check import FAIL, PASS, WARN, Probe, ProbeOutcome
from emuedit.operations.storage.remote_error import KEYS, RemoteError

MAX_SKEW_S, NOTABLE_SKEW_S = 900, 60
"""Stores refuse requests whose time differs from theirs by 15 minutes; a minute gives a warning."""


def probe_credentials(bucket: Bucket, folder: str) -> ProbeOutcome:
    """There are credentials, and the store accepts a signed listing of the bucket."""
    del folder
    place = bucket.location
    session = bucket.credentials()
    if session is None:
        return ProbeOutcome(FAIL, "none found", f"set {KEYS} in AWS_PROFILE")
    bucket.call("list_objects_v2", MaxKeys=1, Prefix=place.key(""))
    source = {"env": "the environment", "explicit": "the settings of DVC"}.get(session.method, session.method)
    temporary = ", temporary" if session.token else ""
    return ProbeOutcome(PASS, f"accepted; from {source}{temporary}")


def probe_endpoint(bucket: Bucket, folder: str) -> ProbeOutcome:
    """The endpoint answers, even if with an error."""
    del folder
    start = time.monotonic()
    _date_of_answer(bucket)
    return ProbeOutcome(PASS, f"{bucket.client.meta.endpoint_url} answers in {time.monotonic() - start:.2f} s")


def _date_of_answer(bucket: Bucket) -> str:
    """The Date header of the answer to an unsigned request, '' if it has none. Raises RemoteError without an answer."""
    from botocore import UNSIGNED

    dates: list[str] = []

    def note_date(response_dict: Any, **_: object) -> None:
        if response_dict is not None:  # None without an answer
            dates.append(response_dict["headers"].get("date", ""))

    def leave_unsigned(**_: object) -> Any:
        return UNSIGNED

    events = bucket.client.meta.events
    events.register_last("response-received.s3", note_date)
    events.register_first("choose-signer.s3", leave_unsigned)
    try:
        bucket.call("list_objects_v2", MaxKeys=1)
    except RemoteError:
        if not dates:  # an error status is an answer too
            raise
    finally:
        events.unregister("response-received.s3", note_date)
        events.unregister("choose-signer.s3", leave_unsigned)
    return dates[-1]


def probe_clock(bucket: Bucket, folder: str) -> ProbeOutcome:
    """The clock of this machine agrees with the Date header of an answer, whatever its status."""
    del folder
    start = time.time()
    date = _date_of_answer(bucket)
    if not date:
        return ProbeOutcome(WARN, "the store's answers have no Date header", "compare its clock yourself")
    middle = (start + time.time()) / 2
    skew_s = middle - parsedate_to_datetime(date).timestamp()
    detail = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the store's"
    if abs(skew_s) < NOTABLE_SKEW_S:
        return ProbeOutcome(PASS, detail)
    advice = "set this machine's clock (`timedatectl set-ntp true`), or the store's"
    return ProbeOutcome(FAIL if abs(skew_s) >= MAX_SKEW_S else WARN, detail, advice)


def probe_region(bucket: Bucket, folder: str) -> ProbeOutcome:
    """The client signs requests for the bucket's region."""
    del folder
    location = bucket.call("get_bucket_location").get("LocationConstraint") or "us-east-1"
    region = bucket.client.meta.region_name or "us-east-1"
    region = "us-east-1" if region == "aws-global" else region
    if location == region:
        return ProbeOutcome(PASS, region)
    if bucket.location.endpoint and not bucket.location.region:
        return ProbeOutcome(PASS, f"the store reports {location!r} and accepts signatures for {region}")
    advice = f"`emuedit remote init {bucket.location.url} --region {location}`, with the same --endpoint"
    return ProbeOutcome(WARN, f"the bucket is in {location}, requests are signed for {region}", advice)


def probe_addressing(bucket: Bucket, folder: str) -> ProbeOutcome:
    """DVC's style of URL (bucket in the path or in the host name) reaches the bucket."""
    del folder
    endpoint = bucket.client.meta.endpoint_url
    is_aws = (urlsplit(endpoint).hostname or "").endswith(("amazonaws.com", "amazonaws.com.cn"))
    if is_aws:
        return ProbeOutcome(PASS, "virtual host names, as AWS requires")
    first_object = {"MaxKeys": 1, "Prefix": bucket.location.key("")}
    try:
        bucket.with_addressing("path").call("list_objects_v2", **first_object)
    except RemoteError as error:
        try:
            bucket.with_addressing("virtual").call("list_objects_v2", **first_object)
        except RemoteError:
            raise error from None
        advice = "add `s3 =` and, indented below it, `addressing_style = virtual` to ~/.aws/config"
        return ProbeOutcome(WARN, "the bucket in the host name works, the bucket in the path does not", advice)
    return ProbeOutcome(PASS, f"the bucket in the path: {endpoint}/{bucket.location.bucket}")


def probe_encryption(bucket: Bucket, folder: str) -> ProbeOutcome:
    """Requests to other machines use TLS."""
    del folder
    parts = urlsplit(bucket.client.meta.endpoint_url)
    if parts.scheme == "https":
        return ProbeOutcome(PASS, "https")
    if is_local(parts.geturl()):
        return ProbeOutcome(PASS, "http, on this machine only")
    return ProbeOutcome(
        WARN, f"http to {parts.hostname}", "data can be intercepted; give the store a certificate and use https://"
    )


ACCESS_PROBES: tuple[tuple[str, Probe], ...] = (
    ("endpoint", probe_endpoint),
    ("clock", probe_clock),
    ("credentials", probe_credentials),
)
"""All other probes depend on these."""
SETTING_PROBES: tuple[tuple[str, Probe], ...] = (
    ("region", probe_region),
    ("path style", probe_addressing),
    ("encryption", probe_encryption),
)
