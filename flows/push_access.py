"""Try whether the DVC remote can be written, by one small object, so that a wrong secret is noticed before the stages run."""

import contextlib
import tempfile
from pathlib import Path
from uuid import uuid4

from emuedit.failures import FailureKind, kind_of
from emuedit.operations.storage import dvc_remote, object_probes
from emuedit.operations.storage.bucket import SCRATCH, Bucket
from emuedit.operations.storage.remote_error import RemoteError

_OTHER_CREDENTIALS = ("credentialpath", "configpath", "allow_anonymous_login")
"""Options of a DVC remote that `Bucket` does not read: with them, the attempt would use other credentials than DVC."""
_PERMANENT_CODES = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "SSLError",
    "UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError", "LoginRefreshRequired",
}  # fmt: skip
"""Errors of botocore about settings and certificates; its other errors without an answer of the store are network failures."""


def try_write(root: Path) -> None:
    """Write a small object to the default DVC remote and delete it. Raises RemoteError if it cannot be written.

    S3-compatible storage and folders are tried. A remote of another kind, or with a file of credentials in DVC's settings, is
    not.
    """
    values = dvc_remote.read_settings(root)
    start = f"remote.{values.get('core.remote')}."
    remote = {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
    url = remote.get("url", "")
    if url.startswith("s3://") and not any(option in remote for option in _OTHER_CREDENTIALS):
        _try_bucket(Bucket(dvc_remote.to_location(remote)))
    elif url and "://" not in url:
        _try_folder(root, Path(url).expanduser())


def failure_kind(error: RemoteError) -> FailureKind:
    """NETWORK for a store that does not answer, is overloaded or fails; OTHER for wrong credentials or settings."""
    return FailureKind.OTHER if error.code in _PERMANENT_CODES else kind_of(error)


def _try_bucket(bucket: Bucket) -> None:
    folder = f"{SCRATCH}/push-{uuid4().hex[:12]}"
    object_probes.probe_write(bucket, folder)
    with contextlib.suppress(RemoteError):  # a push needs no permission to delete; the lifecycle rule removes the object
        object_probes.remove_folder(bucket, folder)


def _try_folder(root: Path, folder: Path) -> None:
    try:
        (root / folder).mkdir(parents=True, exist_ok=True)  # as DVC does
        with tempfile.TemporaryFile(dir=root / folder):
            pass
    except OSError as error:
        raise RemoteError(f"want a folder that can be written, got {folder} ({error.strerror}); fix its permissions") from error
