"""Probes of what a store does with objects: write, read, list in pages, multipart, conditional writes, delete."""

from concurrent.futures import ThreadPoolExecutor

from emuedit.operations.bucket import THREADS, Bucket
from emuedit.operations.remote_check import FAIL, PASS, WARN, Probe, ProbeOutcome
from emuedit.operations.remote_error import RemoteError

N_LISTED = 1005
"""Objects of the probe of listings: more than a page, which is 1,000 keys in S3."""
_MIB = 2**20
_CONTENT = b"emuedit remote check\n"


def probe_write(bucket: Bucket, folder: str) -> ProbeOutcome:
    """An object can be written."""
    bucket.call("put_object", Key=bucket.location.key(f"{folder}/object"), Body=_CONTENT)
    return ProbeOutcome(PASS, f"{len(_CONTENT)} bytes")


def probe_read(bucket: Bucket, folder: str) -> ProbeOutcome:
    """What was written comes back at once, byte for byte."""
    content = bucket.get(f"{folder}/object")
    if content == _CONTENT:
        return ProbeOutcome(PASS, "the bytes that were written")
    seen = "nothing" if content is None else f"{len(content)} other bytes"
    return ProbeOutcome(FAIL, f"got {seen} right after the write", "do not use this store: it loses or delays writes")


def probe_listing(bucket: Bucket, folder: str) -> ProbeOutcome:
    """A listing of over 1,000 objects comes in pages and is complete."""
    names = [f"{folder}/list/{number:05d}" for number in range(N_LISTED)]
    bucket.client  # noqa: B018 - made before the threads, for making one is not thread-safe
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: bucket.call("put_object", Key=bucket.location.key(name), Body=b""), names))
    listed = bucket.names(f"{folder}/list/")
    if listed == names:
        return ProbeOutcome(PASS, f"{N_LISTED} keys, all listed, in order")
    advice = "do not use this store: DVC would upload again, or miss, what a listing leaves out"
    return ProbeOutcome(FAIL, f"{len(set(listed) & set(names))} of {N_LISTED} keys listed", advice)


def probe_multipart(bucket: Bucket, folder: str) -> ProbeOutcome:
    """An object of 6 MiB goes up in two parts, and a range across their border comes back right."""
    key = bucket.location.key(f"{folder}/multipart")
    parts = [b"a" * (5 * _MIB - 1) + b"b", b"c" + b"d" * (_MIB - 1)]
    upload = bucket.call("create_multipart_upload", Key=key)["UploadId"]
    try:
        tags = [
            {
                "PartNumber": number,
                "ETag": bucket.call("upload_part", Key=key, UploadId=upload, PartNumber=number, Body=part)["ETag"],
            }
            for number, part in enumerate(parts, start=1)
        ]
        bucket.call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": tags})
    except RemoteError:
        bucket.call("abort_multipart_upload", Key=key, UploadId=upload)
        raise
    border = 5 * _MIB
    answer = bucket.call("get_object", Key=key, Range=f"bytes={border - 2}-{border + 1}")
    with bucket.explained():
        content = answer["Body"].read()
    if content == b"abcd":
        return ProbeOutcome(PASS, "6 MiB in two parts, and a range across their border")
    advice = "do not use this store: files over 8 MB would come back broken"
    return ProbeOutcome(FAIL, f"want the 4 bytes b'abcd' of a range, got {len(content)} bytes {content[:8]!r}", advice)


def probe_conditional_write(bucket: Bucket, folder: str) -> ProbeOutcome:
    """Of two writes with `If-None-Match: *` to one key, the second is refused (status 412)."""
    if conditional_writes(bucket, folder):
        return ProbeOutcome(PASS, "a second write with `If-None-Match: *` is refused")
    if bucket.is_versioned():
        advice = (
            "`emuedit remote publish` goes by the order of versions instead; let no other tool rely on conditional writes here"
        )
        return ProbeOutcome(WARN, "`If-None-Match: *` is ignored in this versioned bucket", advice)
    advice = "let one person or job at a time run `emuedit remote publish`: two at once can overwrite each other's manifest"
    return ProbeOutcome(WARN, "`If-None-Match: *` is ignored: not enforced", advice)


def conditional_writes(bucket: Bucket, folder: str) -> bool:
    """Whether the store enforces `If-None-Match: *`, by a probe of two writes below `folder`."""
    name = f"{folder}/conditional"
    try:
        return bucket.put_new(name, b"first") and not bucket.put_new(name, b"second")
    except RemoteError as error:
        if error.code == "NotImplemented":
            return False
        raise


def probe_delete(bucket: Bucket, folder: str) -> ProbeOutcome:
    """All that the probes wrote can be deleted, and is gone then."""
    n_deleted = remove_folder(bucket, folder)
    left = bucket.names(f"{folder}/")
    if left or bucket.get(f"{folder}/object") is not None:
        return ProbeOutcome(
            FAIL, f"{len(left)} objects are still there", "allow s3:DeleteObject, or `dvc gc` cannot free anything"
        )
    return ProbeOutcome(PASS, f"{n_deleted} objects of these checks")


def remove_folder(bucket: Bucket, folder: str) -> int:
    """Delete all objects below `folder`, with their old versions where these credentials may; returns how many objects."""
    keys = [{"Key": bucket.location.key(name)} for name in bucket.names(f"{folder}/")]
    try:
        bucket.delete(bucket.versions(f"{folder}/") or keys)
    except RemoteError:  # no versions in this store, or no permission to delete them: then the rule for old versions does
        bucket.delete(keys)
    return len(keys)


OBJECT_PROBES: tuple[tuple[str, Probe], ...] = (
    ("read", probe_read),
    ("list", probe_listing),
    ("multipart", probe_multipart),
    ("conditional write", probe_conditional_write),
    ("delete", probe_delete),
)
"""In this order: what the earlier ones wrote, the last one deletes."""
