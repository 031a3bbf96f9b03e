"""Set up a bucket: create it, turn on versioning, and set lifecycle rules that remove leftovers."""

import contextlib
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from emuedit.operations.storage.bucket import SCRATCH, Bucket, RemoteLocation
from emuedit.operations.storage.remote_error import RemoteError

ABORT_UPLOADS_DAYS, SCRATCH_DAYS, OLD_VERSIONS_DAYS = 2, 7, 30
"""Days after which the rules abort unfinished uploads, and remove scratch objects and old versions."""
ABORT_UPLOADS = "AbortIncompleteMultipartUpload"
"""The action of the rule that ends unfinished uploads."""
UPLOADS_BY_STORE = "let the store end them by its own setting (MinIO: stale_uploads_expiry, by default 24 h)"
"""What to do if the store refuses that rule."""
_DEFAULT_REGION = "us-east-1"  # that of a bucket without a LocationConstraint, which AWS refuses for this region


def create_bucket(bucket: Bucket) -> bool:
    """Create the bucket unless these credentials can already use it; True if it was created.

    Lists only below the prefix, because a role may be restricted to it. Raises RemoteError for credentials that the store
    rejects, or that allow neither listing nor writing there.
    """
    try:
        bucket.call("list_objects_v2", MaxKeys=1, Prefix=bucket.location.key(""))
    except RemoteError as error:
        if error.code == "AccessDenied" and _can_write(bucket):
            return False
        if error.code != "NoSuchBucket":
            raise
    else:
        return False
    region = _region(bucket)
    constraint = {"CreateBucketConfiguration": {"LocationConstraint": region}} if region != _DEFAULT_REGION else {}
    bucket.call("create_bucket", **constraint)
    return True


def _region(bucket: Bucket) -> str:
    """The region of a new bucket: that of the location, or on AWS that of the environment or the profile.

    Other stores do not know the regions of AWS, so the settings for AWS do not apply to them.
    """
    if bucket.location.region:
        return bucket.location.region
    client = bucket.client.meta
    is_aws = (urlsplit(client.endpoint_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return client.region_name if is_aws and client.region_name not in (None, "aws-global") else _DEFAULT_REGION


def _can_write(bucket: Bucket) -> bool:
    """Whether an object in the scratch folder can be written. It is then deleted, or later removed by the lifecycle rule."""
    key = bucket.location.key(f"{SCRATCH}/init-{uuid4().hex[:12]}")
    try:
        bucket.call("put_object", Key=key, Body=b"")
    except RemoteError:
        return False
    with contextlib.suppress(RemoteError):
        bucket.call("delete_object", Key=key)
    return True


def turn_on_versioning(bucket: Bucket) -> bool:
    """Keep deleted and replaced objects as old versions; True if this was turned off before."""
    if bucket.call("get_bucket_versioning").get("Status") == "Enabled":
        return False
    bucket.call("put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"})
    return True


def lifecycle_rules(bucket: Bucket) -> list[dict[str, Any]]:
    """All lifecycle rules of the bucket, including those of others."""
    try:
        rules: list[dict[str, Any]] = bucket.call("get_bucket_lifecycle_configuration").get("Rules", [])
    except RemoteError as error:
        if error.code in ("NoSuchLifecycleConfiguration", "NoSuchKey"):
            return []
        raise
    return rules


def merge_lifecycle(bucket: Bucket) -> tuple[int, bool]:
    """Add or update the rules of this prefix; returns the number of other rules, which are not changed, and whether uploads end.

    MinIO refuses a rule that only ends unfinished uploads, and all others with it, so they are then set without that one.
    """
    rules = wanted_rules(bucket.location)
    ids = {rule["ID"] for rule in rules}
    others = [rule for rule in lifecycle_rules(bucket) if rule.get("ID") not in ids]
    try:
        bucket.call("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [*others, *rules]})
    except RemoteError as error:
        if error.code not in ("MalformedXML", "InvalidArgument", "NotImplemented"):
            raise
        rules = [rule for rule in rules if ABORT_UPLOADS not in rule]
        bucket.call("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [*others, *rules]})
        return len(others), False
    return len(others), True


def old_versions_days(bucket: Bucket) -> int | None:
    """Days after which a rule removes deleted and replaced data of this prefix; None if no rule does."""
    ours = bucket.location.key("")
    rules = [rule for rule in lifecycle_rules(bucket) if rule.get("Status") == "Enabled" and ours.startswith(rule_prefix(rule))]
    days = [rule["NoncurrentVersionExpiration"].get("NoncurrentDays") for rule in rules if "NoncurrentVersionExpiration" in rule]
    return min((n_days for n_days in days if n_days is not None), default=None)


def wanted_rules(location: RemoteLocation) -> list[dict[str, Any]]:
    """The lifecycle rules for this prefix. Their ids contain it, so that several projects can share a bucket."""
    name, everything = location.prefix.replace("/", "-") or "all", {"Prefix": location.key("")}
    return [
        {"ID": f"emuedit-{name}-end-unfinished-uploads", "Status": "Enabled", "Filter": everything,
         ABORT_UPLOADS: {"DaysAfterInitiation": ABORT_UPLOADS_DAYS}},
        {"ID": f"emuedit-{name}-remove-scratch", "Status": "Enabled", "Filter": {"Prefix": location.key(f"{SCRATCH}/")},
         "Expiration": {"Days": SCRATCH_DAYS}},
        {"ID": f"emuedit-{name}-remove-old-versions", "Status": "Enabled", "Filter": everything,
         "NoncurrentVersionExpiration": {"NoncurrentDays": OLD_VERSIONS_DAYS}},
    ]  # fmt: skip


def rule_prefix(rule: dict[str, Any]) -> str:
    """The key prefix of a lifecycle rule in any of the three forms; '' for the whole bucket."""
    scope = rule.get("Filter") or {}
    return str(scope.get("Prefix") or scope.get("And", {}).get("Prefix") or rule.get("Prefix") or "")


def removes_data(rule: dict[str, Any], location: RemoteLocation) -> bool:
    """Whether an enabled rule expires current objects of this prefix outside its scratch folder."""
    expiration = rule.get("Expiration", {})
    if rule.get("Status") != "Enabled" or not ("Days" in expiration or "Date" in expiration):
        return False
    prefix, ours = rule_prefix(rule), location.key("")
    inside_scratch = prefix.startswith(location.key(f"{SCRATCH}/"))
    return not inside_scratch and (ours.startswith(prefix) or prefix.startswith(ours))
