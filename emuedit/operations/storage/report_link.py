"""Links to reports that open in a browser without an account: uploads below `reports/<commit>/` with presigned URLs."""

import mimetypes
from pathlib import Path

from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.dvc_remote import run_git
from emuedit.operations.storage.remote_error import RemoteError

MAX_HOURS = 168
"""A link is valid for at most a week (AWS Signature Version 4)."""


def link_report(bucket: Bucket, root: Path, path: Path, hours: float) -> str:
    """Upload a file of the project at `root` and return a URL that anyone can open for `hours` hours, in (0, MAX_HOURS].

    A URL that is signed with temporary credentials ends with them.
    If dvc.lock or params.yaml is not committed, the file is uploaded to `reports/<commit>-uncommitted/`.
    Raises RemoteError for a path that is not a file below `root`, and for other hours.
    """
    if not 0 < hours <= MAX_HOURS:
        raise RemoteError(f"want --hours above 0 and at most {MAX_HOURS}, got {hours:g}")
    if not path.is_file():
        raise RemoteError(f"want a file to link to, got {path}; name one such as reports/evaluation/contact_sheet.png")
    if not path.resolve().is_relative_to(root.resolve()):
        raise RemoteError(f"want a file below {root}, got {path}")
    commit = run_git(["rev-parse", "HEAD"], root).strip()
    changed = run_git(["status", "--porcelain", "--", "dvc.lock", "params.yaml"], root).strip()
    folder = f"reports/{commit}{'-uncommitted' if changed else ''}"
    key = bucket.location.key(f"{folder}/{path.resolve().relative_to(root.resolve()).as_posix()}")
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    with path.open("rb") as content:
        bucket.call("put_object", Key=key, Body=content, ContentType=kind)
    with bucket.explained():
        url = bucket.client.generate_presigned_url(
            "get_object", Params={"Bucket": bucket.location.bucket, "Key": key}, ExpiresIn=round(hours * 3600)
        )
    return str(url)
