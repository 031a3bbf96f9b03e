"""Probes of a bucket's settings: versioning, lifecycle rules and unfinished uploads."""

from datetime import UTC, datetime, timedelta

from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.bucket_setup import (
    ABORT_UPLOADS,
    ABORT_UPLOADS_DAYS,
    UPLOADS_BY_STORE,
    lifecycle_rules,
    removes_data,
    rule_prefix,
    wanted_rules,
)
from emuedit.operations.storage.remote_check import FAIL, PASS, WARN, Probe, ProbeOutcome
from emuedit.operations.storage.remote_error import RemoteError

_RUN_INIT = "run `emuedit remote init` again with credentials that allow changes of the bucket, or ask its owner"


def probe_versioning(bucket: Bucket, folder: str) -> ProbeOutcome:
    """Deleted and replaced objects are kept as old versions for a while."""
    del folder
    try:
        status = bucket.call("get_bucket_versioning").get("Status")
    except RemoteError as error:
        return ProbeOutcome(WARN, f"cannot be read ({error.code}): data deleted by mistake may be lost", _RUN_INIT)
    if status == "Enabled":
        return ProbeOutcome(PASS, "on: data deleted by mistake can be restored for a while")
    return ProbeOutcome(WARN, "off: data deleted by mistake is lost", _RUN_INIT)


def probe_lifecycle(bucket: Bucket, folder: str) -> ProbeOutcome:
    """A rule aborts unfinished uploads, and no rule removes data."""
    del folder
    place = bucket.location
    try:
        rules = lifecycle_rules(bucket)
    except RemoteError as error:
        return ProbeOutcome(WARN, f"cannot be read ({error.code}): unfinished uploads may use space forever", _RUN_INIT)
    if bad := [str(rule.get("ID", "without an ID")) for rule in rules if removes_data(rule, place)]:
        return ProbeOutcome(
            FAIL, f"rule {', '.join(bad)} removes data of {place.url}", "restrict or delete it; this project did not create it"
        )
    ends_uploads = any(
        rule.get("Status") == "Enabled" and ABORT_UPLOADS in rule and place.key("").startswith(rule_prefix(rule))
        for rule in rules
    )
    if not ends_uploads:
        other_ids = {rule["ID"] for rule in wanted_rules(place) if ABORT_UPLOADS not in rule}
        is_refused = other_ids <= {rule.get("ID") for rule in rules}  # by the store: `init` sets all rules, or all but this one
        advice = f"the store refuses such a rule; {UPLOADS_BY_STORE}" if is_refused else _RUN_INIT
        return ProbeOutcome(WARN, "no rule aborts unfinished uploads, which use space but appear in no listing", advice)
    return ProbeOutcome(PASS, f"{len(rules)} rules; unfinished uploads are aborted")


def probe_uploads(bucket: Bucket, folder: str) -> ProbeOutcome:
    """No multipart upload is older than the rule allows."""
    del folder
    try:
        starts = bucket.upload_starts()
    except RemoteError as error:
        if error.code in ("NotImplemented", "AccessDenied"):
            return ProbeOutcome(
                WARN, f"cannot be listed ({error.code})", "look for unfinished uploads with the store's own tools"
            )
        raise
    limit = datetime.now(UTC) - timedelta(days=ABORT_UPLOADS_DAYS + 1)  # rules run once a day
    n_old = sum(start < limit for start in starts)
    if n_old:
        return ProbeOutcome(
            WARN, f"{n_old} unfinished for over {ABORT_UPLOADS_DAYS + 1} days", f"no rule aborts them; {_RUN_INIT}"
        )
    return ProbeOutcome(PASS, f"{len(starts)} under way or left by killed pushes, none older than {ABORT_UPLOADS_DAYS + 1} days")


BUCKET_PROBES: tuple[tuple[str, Probe], ...] = (
    ("versioning", probe_versioning),
    ("lifecycle", probe_lifecycle),
    ("unfinished uploads", probe_uploads),
)
