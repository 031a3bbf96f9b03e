"""The objects of DVC's data in a remote: their names, and whether the store has them and can read them.

A store that stops during an upload may later list an object that it cannot read: Ceph's gateway, killed during uploads to a
bucket with versions, did so with 5 of 218 objects. DVC believes the listing, so `dvc push` does not upload the object again.
Nor does it upload a deleted file of a folder again whose `.dir` is in the remote: it takes that as proof that its files are.
"""

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from emuedit.data.name_list import first_names
from emuedit.operations.storage.bucket import THREADS, Bucket
from emuedit.operations.storage.dvc_remote import run_dvc
from emuedit.operations.storage.remote_error import RemoteError

OBJECTS = "files/md5/"
"""DVC's folder in a remote and in its cache."""
_GONE = "NoSuchKey"


def object_name(digest: str) -> str:
    """Name below the prefix of a remote, and below DVC's cache, of the file or listing with this hash."""
    return f"{OBJECTS}{digest[:2]}/{digest[2:]}"


def cache_folder(root: Path) -> Path:
    """DVC's cache of the clone at `root`."""
    return root / run_dvc(["cache", "dir"], root).strip()


def files_of_folders(digests: Collection[str], cache: Path, bucket: Bucket) -> tuple[set[str], set[str]]:
    """The hashes of the files in the folders among `digests`, and the folders whose listing is nowhere.

    Listings are read from the cache, else from the remote.
    """
    files, missing = set[str](), set[str]()
    for folder in sorted(digest for digest in digests if digest.endswith(".dir")):
        local = cache / object_name(folder)
        content = local.read_bytes() if local.exists() else bucket.get(object_name(folder))
        if content is None:
            missing.add(folder)
        else:
            files.update(entry["md5"] for entry in json.loads(content))
    return files, missing


def find_lost(bucket: Bucket, digests: Collection[str], cache: Path) -> tuple[list[str], int]:
    """The names of the objects of outputs with these hashes that the store lacks or cannot read, and the number of all.

    Outputs that the remote does not list are left out, because those with `cache: false`, `push: false` or another remote are
    not pushed; DVC reports the others. All files of a listed folder must be there, with the listed size if they are listed.
    """
    start = len(bucket.location.key(""))
    listed = {key[start:]: size for key, size in bucket.sizes(OBJECTS).items()}
    pushed = [digest for digest in digests if object_name(digest) in listed]
    files, without_listing = files_of_folders(pushed, cache, bucket)
    names = sorted(map(object_name, {*pushed, *files}))
    bucket.client  # noqa: B018 - created before the threads, because creating a client is not thread-safe
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(lambda name: _size(bucket, name), names))
    lost_names = {name for name, size in zip(names, sizes, strict=True) if size is None or size != listed.get(name, size)}
    return sorted(lost_names.union(map(object_name, without_listing))), len(names)


def upload_again(bucket: Bucket, names: Collection[str], cache: Path) -> None:
    """Replace objects of the remote by the files of the cache. Raises RemoteError, before any upload, if the cache lacks some."""
    if absent := [name for name in names if not (cache / name).exists()]:
        raise RemoteError(
            f"want {describe(absent)} in DVC's cache, got none; run this in a clone that has them, or run their stages again"
        )
    client = bucket.client
    for name in names:
        with bucket.explained(), (cache / name).open("rb") as file:
            client.upload_fileobj(file, bucket.location.bucket, bucket.location.key(name))


def describe(names: Collection[str]) -> str:
    """The number of objects and the names of the first."""
    return f"{len(names)} objects ({first_names(sorted(names))})"


def _size(bucket: Bucket, name: str) -> int | None:
    """Bytes of an object; None if the store has none of this name."""
    try:
        return int(bucket.call("head_object", Key=bucket.location.key(name))["ContentLength"])
    except RemoteError as error:
        if error.code == _GONE:
            return None
        raise
