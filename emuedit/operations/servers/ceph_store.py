"""An S3 store for the data of one machine: Ceph's object gateway, if it is installed, run by infra/s3/ceph-rgw.sh.

Its keys are in the data folder of the servers. If the shell uses another store, Ceph is not started, since its keys in the
environment would replace those of the other store.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from emuedit.data.atomic_file import write_private
from emuedit.operations.servers.http_probe import ask
from emuedit.operations.servers.local_ports import HOST
from emuedit.operations.storage import bucket_setup, dvc_remote
from emuedit.operations.storage.bucket import Bucket, RemoteLocation

NAME, MONITOR = "store", "store-monitor"
"""Names of the service, and of the second port that it needs."""
BUCKET = "emuedit"
"""The bucket that `create_bucket` creates; also the prefix of the data in it."""
S3_ENV = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE", "S3_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL", "MLFLOW_S3_IGNORE_TLS",
)  # fmt: skip
"""Environment variables for the access to S3."""
_REGION_ENV = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "MLFLOW_S3_IGNORE_TLS")
"""Those of S3_ENV that select no store."""
STORE_ENV = "EMUEDIT_STORE"
"""`off`: no store is started."""
SCRIPT = Path(__file__).resolve().parents[3] / "infra/s3/ceph-rgw.sh"
KEYS_FILE = "store.keys"
"""File in the data folder of the servers with the keys; created at the first start."""
_TOOLS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool")
_PROBE_S = 5.0
_MIN_DISK_GB, _MAX_DISK_GB = 4, 200


@dataclass(frozen=True)
class CephStore:
    """A store: the folder with its data, its ports and keys, and whether shells and servers use it by default."""

    folder: Path
    port: int
    monitor_port: int
    access_key: str
    secret_key: str
    is_default: bool = True

    @property
    def url(self) -> str:
        """The S3 endpoint."""
        return f"http://{HOST}:{self.port}"

    @property
    def is_created(self) -> bool:
        """Whether it was started before, so that it may contain data."""
        return (self.folder / "complete").exists()

    @property
    def command(self) -> list[str]:
        """The command line of the process that runs it, without the keys."""
        return ["bash", str(SCRIPT), "run", str(self.folder), str(self.port), str(self.monitor_port)]

    @property
    def environment(self) -> dict[str, str]:
        """Environment of that process. CEPH_DISK_GB limits the data; the file with them grows as they do."""
        free_gb = shutil.disk_usage(self.folder.parent).free // 10**9
        disk_gb = min(max(free_gb // 2, _MIN_DISK_GB), _MAX_DISK_GB)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
        return {**kept, "S3_ACCESS_KEY": self.access_key, "S3_SECRET_KEY": self.secret_key, "CEPH_DISK_GB": str(disk_gb)}

    @property
    def exports(self) -> dict[str, str]:
        """Environment variables with which clients use it; empty if they use another store."""
        if not self.is_default:
            return {}
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        return {"S3_ENDPOINT_URL": self.url, "EMUEDIT_BUCKET": BUCKET, **keys}

    def answers(self) -> bool:
        """Whether it accepts requests and has its account."""
        return self.is_created and ask(self.url, _PROBE_S).is_success

    def create_bucket(self) -> None:
        """Create the bucket with versioning and lifecycle rules, unless it exists. Raises RemoteError."""
        keys = {"access_key": self.access_key, "secret_key": self.secret_key}
        bucket = Bucket(RemoteLocation(BUCKET, BUCKET, self.url, "us-east-1", **keys))
        if bucket_setup.create_bucket(bucket):
            bucket_setup.turn_on_versioning(bucket)
            bucket_setup.merge_lifecycle(bucket)


def find_store(folder: Path, port: int, monitor_port: int) -> tuple[CephStore | None, str]:
    """The store of a data folder of the servers, or None, and a text with the reason.

    Raises ValueError if EMUEDIT_STORE is neither empty nor `off`.
    """
    setting = os.environ.get(STORE_ENV, "")
    if setting not in ("", "off"):
        raise ValueError(f"want {STORE_ENV}=off, or not set, got {setting!r}; `off` starts no S3 store")
    if setting == "off":
        return None, f"left out, as {STORE_ENV} says"
    if not SCRIPT.exists() or not all(shutil.which(tool) for tool in _TOOLS):
        return None, "left out: Ceph is not installed (Debian: infra/s3/ceph-rgw.sh install)"
    path = folder / KEYS_FILE
    store = CephStore(folder / NAME, port, monitor_port, *(_read_keys(path) if path.exists() else ("", "")))
    other = _other_store(store)
    if other and not store.is_created:
        return None, f"left out: {other} is for another store"
    if not path.exists():
        _create_keys(path)
        store = CephStore(store.folder, port, monitor_port, *_read_keys(path))
    if not other:
        return store, f"Ceph at {store.url}"
    return replace(store, is_default=False), f"Ceph at {store.url}; keys not exported: {other} is for another store"


def _other_store(store: CephStore) -> str:
    """A setting of the shell, the home folder or the workspace with which programs would use another store; empty if none."""
    is_sourced = os.environ.get("AWS_ACCESS_KEY_ID") == store.access_key
    for name in S3_ENV:
        if os.environ.get(name) and name not in _REGION_ENV and not is_sourced:
            return name
    for file in ("~/.aws/credentials", "~/.aws/config"):
        if Path(file).expanduser().exists():
            return file
    remote = dvc_remote.read_s3_remote()
    if remote is not None and remote.get("endpointurl", "").rstrip("/") != store.url:
        return f"DVC's remote {remote['url']}"
    return ""


def _create_keys(path: Path) -> None:
    """Write a random access key and secret to a file that only its owner can read."""
    keys = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_urlsafe(30)}
    write_private(path, json.dumps(keys) + "\n")


def _read_keys(path: Path) -> tuple[str, str]:
    """Access key and secret of a file."""
    content: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return content["access_key"], content["secret_key"]
