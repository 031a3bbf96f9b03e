"""Probes of the way to a store: credentials, clock, region, addressing, and encryption on the way."""

import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from emuedit.operations.bucket import Bucket
from emuedit.operations.remote_check import FAIL, PASS, WARN, Probe, ProbeOutcome
from emuedit.operations.remote_error import KEYS, RemoteError

MAX_SKEW_S, NOTABLE_SKEW_S = 900, 60
"""Stores refuse requests whose time differs by 15 minutes from theirs; a minute is worth a warning."""


def probe_credentials(bucket: Bucket, folder: str) -> ProbeOutcome:
    """Credentials are there, and the store accepts a signed listing of the bucket."""
    del folder
    place = bucket.location
    session = bucket.credentials()
    if session is None:
        return ProbeOutcome(FAIL, "there are none", f"set {KEYS} in AWS_PROFILE")
    bucket.call("list_objects_v2", MaxKeys=1, Prefix=place.key(""))
    source = {"env": "the environment", "explicit": "the settings of DVC"}.get(session.method, session.method)
    temporary = ", temporary" if session.token else ""
    return ProbeOutcome(PASS, f"accepted; from {source}{temporary}")


def probe_endpoint(bucket: Bucket, folder: str) -> ProbeOutcome:
    """Something answers under the endpoint, be it a refusal."""
    del folder
    start = time.monotonic()
    _date_of_answer(bucket)
    return ProbeOutcome(PASS, f"{bucket.client.meta.endpoint_url} answers in {time.monotonic() - start:.2f} s")


def _date_of_answer(bucket: Bucket) -> str:
    """The Date header of the answer to an unsigned request, '' if it has none. Raises RemoteError when no answer comes."""
    from botocore import UNSIGNED

    dates: list[str] = []

    def note_date(response_dict: Any, **_: object) -> None:
        if response_dict is not None:  # None when no answer came
            dates.append(response_dict["headers"].get("date", ""))

    def leave_unsigned(**_: object) -> Any:
        return UNSIGNED

    events = bucket.client.meta.events
    events.register_last("response-received.s3", note_date)
    events.register_first("choose-signer.s3", leave_unsigned)
    try:
        bucket.call("list_objects_v2", MaxKeys=1)
    except RemoteError:
        if not dates:  # a refusal is an answer
            raise
    finally:
        events.unregister("response-received.s3", note_date)
        events.unregister("choose-signer.s3", leave_unsigned)
    return dates[-1]


def probe_clock(bucket: Bucket, folder: str) -> ProbeOutcome:
    """The clock of this machine agrees with the Date header of an answer, even of one that refuses."""
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
    """The client signs for the region in which the bucket is."""
    del folder
    location = bucket.call("get_bucket_location").get("LocationConstraint") or "us-east-1"
    region = bucket.client.meta.region_name or "us-east-1"
    region = "us-east-1" if region == "aws-global" else region
    if location == region:
        return ProbeOutcome(PASS, region)
    if bucket.location.endpoint and not bucket.location.region:
        return ProbeOutcome(PASS, f"the store calls it {location!r} and accepts signatures for {region}")
    advice = f"`emuedit remote init {bucket.location.url} --region {location}`, with the same --endpoint"
    return ProbeOutcome(WARN, f"the bucket is in {location}, requests are signed for {region}", advice)


def probe_addressing(bucket: Bucket, folder: str) -> ProbeOutcome:
    """The style of URL that DVC will use (bucket in the path, or in the host name) reaches the bucket."""
    del folder
    endpoint = bucket.client.meta.endpoint_url
    is_aws = (urlsplit(endpoint).hostname or "").endswith(("amazonaws.com", "amazonaws.com.cn"))
    if is_aws:
        return ProbeOutcome(PASS, "virtual host names, as AWS wants")
    first_object = {"MaxKeys": 1, "Prefix": bucket.location.key("")}
    try:
        bucket.with_addressing("path").call("list_objects_v2", **first_object)
    except RemoteError as error:
        try:
            bucket.with_addressing("virtual").call("list_objects_v2", **first_object)
        except RemoteError:
            raise error from None
        advice = "put `s3 =` and, indented below it, `addressing_style = virtual` into ~/.aws/config"
        return ProbeOutcome(WARN, "the bucket in the host name works, in the path it does not", advice)
    return ProbeOutcome(PASS, f"the bucket in the path: {endpoint}/{bucket.location.bucket}")


def probe_encryption(bucket: Bucket, folder: str) -> ProbeOutcome:
    """Requests to other machines go through TLS."""
    del folder
    parts = urlsplit(bucket.client.meta.endpoint_url)
    if parts.scheme == "https":
        return ProbeOutcome(PASS, "https")
    if parts.hostname in ("localhost", "::1") or (parts.hostname or "").startswith("127."):
        return ProbeOutcome(PASS, "http, on this machine only")
    return ProbeOutcome(
        WARN, f"http to {parts.hostname}", "data can be read on the way; give the store a certificate and use https://"
    )


ACCESS_PROBES: tuple[tuple[str, Probe], ...] = (
    ("endpoint", probe_endpoint),
    ("clock", probe_clock),
    ("credentials", probe_credentials),
)
"""Without these nothing else can work."""
SETTING_PROBES: tuple[tuple[str, Probe], ...] = (
    ("region", probe_region),
    ("path style", probe_addressing),
    ("encryption", probe_encryption),
)
