"""Published data: immutable numbered manifests in the remote, and a pointer to the latest.

`manifests/000012.json` is written on the condition that it does not exist (`If-None-Match: *`), so that of two publishers one
gets the number and the other takes the next. The manifests are authoritative; `latest.json` is a copy of the latest, for tools
that read one URL.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emuedit import dvc_lock
from emuedit.data.name_list import first_names
from emuedit.dvc_lock import LOCK_FILE
from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.dvc_remote import run_dvc, run_git
from emuedit.operations.storage.remote_error import RemoteError

FOLDER, POINTER = "manifests", "latest.json"
_TRIES = 50  # numbers that other publishers may take first


class DataManifest(BaseModel):
    """A published state of the data. `git checkout COMMIT && dvc pull` fetches it into any clone."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # later versions may add fields

    number: int = Field(ge=1, description="counts up from 1, without gaps")
    commit: str = Field(description="the git commit whose dvc.lock names the data, 40 hex digits")
    dvc_lock: str = Field(description="SHA-256 of that dvc.lock, hex; empty if there is none")
    data: dict[str, str] = Field(description="DVC's hash of every output: path -> md5, of a folder with .dir")
    published: datetime = Field(description="time of publication, UTC")
    publisher: str = Field(description="git's user.name")
    id: str = Field(description="random; distinguishes two attempts of one publisher")

    def encode(self) -> bytes:
        """Encode as JSON; equal manifests give equal bytes."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def read_latest(bucket: Bucket) -> DataManifest | None:
    """The manifest with the highest number; None if nothing was published. Does not need the pointer to be up to date."""
    pointer = _decode(bucket.get(POINTER), POINTER)
    names = bucket.names(f"{FOLDER}/", after=_name(pointer.number) if pointer else "")
    return _decode(bucket.get(names[-1]), names[-1]) if names else pointer


def describe_commit(root: Path) -> dict[str, Any]:
    """The fields of a manifest that come from the clone at `root`.

    Raises RemoteError if dvc.lock has uncommitted changes, or if the remote lacks some of its outputs, and LockFileError. DVC
    looks only for the listing of a folder; `data_objects.find_lost` looks for its files.
    """
    if changed := run_git(["status", "--porcelain", "--", LOCK_FILE, "*.dvc"], root).split():
        raise RemoteError(f"want committed data, got changes in {changed[-1]}; run `git commit` first")
    status = json.loads(run_dvc(["data", "status", "--not-in-remote", "--json"], root))
    if missing := status.get("not_in_remote"):
        raise RemoteError(f"want all data in the remote, but {first_names(missing)} is missing; run `uv run dvc push` first")
    commit = run_git(["rev-parse", "HEAD"], root).strip()
    data = data_hashes(dvc_lock.read_stages(root))
    for name in run_git(["ls-files", "-z", "--", "*.dvc"], root).split("\0"):
        if name:
            outputs = yaml.safe_load((root / name).read_text()).get("outs", [])
            data |= {str(Path(name).parent / output["path"]): output["md5"] for output in outputs if "md5" in output}
    if not data:
        raise RemoteError(
            f"want data to publish, got no dvc.lock and no .dvc file in {root}; `uv run retrain`, commit, push first"
        )
    lock = root / LOCK_FILE
    digest = hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else ""
    publisher = run_git(["var", "GIT_COMMITTER_IDENT"], root).split(" <")[0]
    return {"commit": commit, "dvc_lock": digest, "data": data, "publisher": publisher}


def data_hashes(stages: Mapping[str, Any]) -> dict[str, str]:
    """Path -> md5 of every output of the stages in a dvc.lock."""
    outputs = [output for stage in stages.values() for output in stage.get("outs", ())]
    return {output["path"]: output["md5"] for output in sorted(outputs, key=lambda output: output["path"]) if "md5" in output}


def publish(bucket: Bucket, fields: Mapping[str, Any]) -> DataManifest:
    """Write the next numbered manifest, then the pointer. No manifest of a concurrent publisher is overwritten.

    fields: as from `describe_commit`. Raises RemoteError if fifty other publishers were faster.
    """
    identity = {"published": datetime.now(UTC), "id": uuid4().hex}
    number = _newest_number(bucket)
    for _ in range(_TRIES):
        number = max(number + 1, _newest_number(bucket) + 1)
        manifest = DataManifest(number=number, **identity, **fields)
        name = _name(number)
        if _claim(bucket, name, manifest.encode()):
            _point_to_newest(bucket, manifest)
            return manifest
    raise RemoteError(f"want a free number for the manifest, got {_TRIES} taken by other publishers; try again")


def _claim(bucket: Bucket, name: str, body: bytes) -> bool:
    """Write a manifest unless another publisher has the name; returns whether it is ours.

    Some stores ignore `If-None-Match` in versioned buckets (Ceph 16). There the oldest version wins, which is the same for all
    publishers after they have written, and the others delete theirs.
    """
    if not bucket.put_new(name, body):
        # If the answer to a write is lost, the client repeats it, and the store refuses the repetition: then the content is ours.
        return bucket.get(name) == body
    contents = _read_versions(bucket, name)
    if len(contents) < 2 or list(contents.values())[-1] == body:
        return True
    key = bucket.location.key(name)
    bucket.delete([{"Key": key, "VersionId": version} for version, content in contents.items() if content == body])
    return False


def orders_versions(bucket: Bucket) -> bool:
    """Whether `publish` can tell the oldest of several versions: the store keeps them, and these credentials may read them."""
    try:
        if not bucket.is_versioned():
            return False
        for entry in bucket.versions(f"{FOLDER}/")[:1]:
            _read_version(bucket, entry)
        return True
    except RemoteError as error:
        if error.code == "AccessDenied":
            return False
        raise


def _read_versions(bucket: Bucket, name: str) -> dict[str, bytes | None]:
    """Version id -> content of the versions of an object, the newest first.

    Empty without versions, and if these credentials may not list or read them: then only the conditional write counts.
    """
    try:
        versions = bucket.versions(name) if bucket.is_versioned() else []
        return {entry["VersionId"]: _read_version(bucket, entry) for entry in versions} if len(versions) > 1 else {}
    except RemoteError as error:
        if error.code == "AccessDenied":
            return {}
        raise


def _read_version(bucket: Bucket, entry: Mapping[str, str]) -> bytes | None:
    """The content of a version; None if its publisher has deleted it, or for a delete marker."""
    try:
        answer = bucket.call("get_object", **entry)
    except RemoteError as error:
        if error.code in ("NoSuchKey", "NoSuchVersion", "NotImplemented"):
            return None
        raise
    with bucket.explained():
        return bytes(answer["Body"].read())


def _point_to_newest(bucket: Bucket, manifest: DataManifest) -> None:
    """Write the pointer until no manifest is newer, so that a slow publisher does not leave an older one.

    Each publisher lists after it writes, so the last one sees all manifests that were written before.
    """
    newest = manifest
    while True:
        bucket.call(
            "put_object", Key=bucket.location.key(POINTER), Body=newest.encode(),
            ContentType="application/json", CacheControl="no-cache",
        )  # fmt: skip
        later = bucket.names(f"{FOLDER}/", after=_name(newest.number))
        if not later:
            return
        decoded = _decode(bucket.get(later[-1]), later[-1])
        if decoded is None:
            return
        newest = decoded


def _newest_number(bucket: Bucket) -> int:
    names = bucket.names(f"{FOLDER}/")
    return int(Path(names[-1]).stem) if names else 0


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def _decode(content: bytes | None, name: str) -> DataManifest | None:
    if content is None:
        return None
    try:
        return DataManifest.model_validate_json(content)
    except ValidationError as error:
        raise RemoteError(
            f"want a manifest in {name} of the remote, got {content[:80]!r}; {error.error_count()} errors"
        ) from error
