"""Probes of object operations: write, read, list in pages, multipart, conditional writes, delete."""

from concurrent.futures import ThreadPoolExecutor

from emuedit.operations.storage.bucket import THREADS, Bucket
from emuedit.operations.storage.remote_check import FAIL, PASS, WARN, Probe, ProbeOutcome
from emuedit.operations.storage.remote_error import RemoteError

N_LISTED = 1005
"""Objects of the listing probe: more than one page, which is 1,000 keys in S3."""
_MIB = 2**20
_CONTENT = b"emuedit remote check\n"


def probe_write(bucket: Bucket, folder: str) -> ProbeOutcome:
    """An object can be written."""
    bucket.call("put_object", Key=bucket.location.key(f"{folder}/object"), Body=_CONTENT)
    return ProbeOutcome(PASS, f"{len(_CONTENT)} bytes")


def probe_read(bucket: Bucket, folder: str) -> ProbeOutcome:
    """A written object can be read immediately, byte for byte."""
    content = bucket.get(f"{folder}/object")
    if content == _CONTENT:
        return ProbeOutcome(PASS, "the bytes that were written")
    seen = "nothing" if content is None else f"{len(content)} other bytes"
    return ProbeOutcome(FAIL, f"got {seen} right after the write", "do not use this store: it loses or delays writes")


def probe_listing(bucket: Bucket, folder: str) -> ProbeOutcome:
    """A listing of over 1,000 objects comes in pages and is complete."""
    names = [f"{folder}/list/{number:05d}" for number in range(N_LISTED)]
    bucket.client  # noqa: B018 - created before the threads, because creating a client is not thread-safe
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: bucket.call("put_object", Key=bucket.location.key(name), Body=b""), names))
    listed = bucket.names(f"{folder}/list/")
    if listed == names:
        return ProbeOutcome(PASS, f"{N_LISTED} keys, all listed, in order")
    advice = "do not use this store: DVC would upload missing objects again, or not find them"
    return ProbeOutcome(FAIL, f"{len(set(listed) & set(names))} of {N_LISTED} keys listed", advice)


def probe_multipart(bucket: Bucket, folder: str) -> ProbeOutcome:
    """An object of 6 MiB can be uploaded in two parts, and a range across their border is correct."""
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
    advice = "do not use this store: files over 8 MB would be corrupted"
    return ProbeOutcome(FAIL, f"want the 4 bytes b'abcd' of a range, got {len(content)} bytes {content[:8]!r}", advice)


def probe_conditional_write(bucket: Bucket, folder: str) -> ProbeOutcome:
    """Of two writes with `If-None-Match: *` to one key, the second is refused (status 412)."""
    if conditional_writes(bucket, folder):
        return ProbeOutcome(PASS, "a second write with `If-None-Match: *` is refused")
    if bucket.is_versioned():
        advice = (
            "`emuedit remote publish` uses the order of versions instead; other tools must not rely on conditional writes here"
        )
        return ProbeOutcome(WARN, "`If-None-Match: *` is ignored in this versioned bucket", advice)
    advice = "do not run `emuedit remote publish` concurrently: one run could overwrite the manifest of the other"
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
    """All objects of the probes can be deleted, and are gone afterwards."""
    n_deleted = remove_folder(bucket, folder)
    left = bucket.names(f"{folder}/")
    if left or bucket.get(f"{folder}/object") is not None:
        return ProbeOutcome(
            FAIL, f"{len(left)} objects are still there", "allow s3:DeleteObject; otherwise `dvc gc` cannot free space"
        )
    return ProbeOutcome(PASS, f"{n_deleted} objects of these checks")


def remove_folder(bucket: Bucket, folder: str) -> int:
    """Delete all objects below `folder`, with their old versions if permitted; returns the number of objects."""
    keys = [{"Key": bucket.location.key(name)} for name in bucket.names(f"{folder}/")]
    try:
        bucket.delete(bucket.versions(f"{folder}/") or keys)
    except RemoteError:  # no versions, or no permission to delete them; the lifecycle rule removes them later
        bucket.delete(keys)
    return len(keys)


OBJECT_PROBES: tuple[tuple[str, Probe], ...] = (
    ("read", probe_read),
    ("list", probe_listing),
    ("multipart", probe_multipart),
    ("conditional write", probe_conditional_write),
    ("delete", probe_delete),
)
"""In this order: the last one deletes the objects of the earlier ones."""
