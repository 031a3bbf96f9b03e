"""A guard around `dvc gc --cloud`, which deletes all data that no commit of a clone needs from a remote.

An object is deleted only if no commit needs it according to both DVC, in a dry run, and this module's scan. DVC alone is not
enough: it skips a commit or a working folder whose dvc.yaml it cannot read, and when forced it silently deletes the files of a
folder whose listing it could not get.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from emuedit.operations.storage.bucket import Bucket
from emuedit.operations.storage.clone_check import DATA_FILES
from emuedit.operations.storage.data_objects import OBJECTS, cache_folder, files_of_folders, object_name
from emuedit.operations.storage.dvc_remote import run_dvc, run_git
from emuedit.operations.storage.remote_error import RemoteError

KEEP = ("--workspace", "--all-commits", "--all-experiments")
"""Data that DVC keeps: of the working folder, of all commits of all branches and tags, and of all DVC experiments."""
_REMOVING = re.compile(r"^Removing (.+)$", re.MULTILINE)
_REMOVED = re.compile(r"^Removed (\d+) objects from ", re.MULTILINE)
_UNREADABLE = re.compile(r"Failed to collect '")
_HASH = re.compile(r"\bmd5: ['\"]?([0-9a-f]{32}(?:\.dir)?)\b")


@dataclass(frozen=True)
class RemovalPlan:
    """`sizes`: key -> bytes of the objects that no commit needs. The counts are shown before a person confirms."""

    sizes: dict[str, int]
    n_protected: int
    """Objects that DVC would delete although a commit or the working folder needs them."""
    n_unreadable_commits: int
    n_lost_folders: int
    """Folders of commits whose listing is neither in the cache nor in the remote, so that their files are unknown."""


def plan_removal(root: Path, remote: str, bucket: Bucket) -> RemovalPlan:
    """List the objects that can be deleted from a DVC remote. Deletes nothing. Raises RemoteError if DVC or the store fails."""
    output = run_dvc(["gc", "--cloud", "--remote", remote, *KEEP, "--skip-failed", "--dry"], root, with_warnings=True)
    paths = _REMOVING.findall(output)
    if (n_announced := sum(map(int, _REMOVED.findall(output)))) != len(paths):
        raise RemoteError(
            f"want {n_announced} paths from `dvc gc --dry`, got {len(paths)}; this version of DVC has another output format"
        )
    place = bucket.location
    start = f"{place.bucket}/{place.key(OBJECTS)}"
    digests = {path.removeprefix(start).replace("/", "") for path in paths if path.startswith(start)}
    needed, n_lost = needed_hashes(root, bucket)
    sizes = bucket.sizes(OBJECTS)
    removable = {place.key(object_name(digest)) for digest in digests - needed}
    plan = {key: size for key, size in sizes.items() if key in removable}
    return RemovalPlan(plan, len(digests & needed), len(_UNREADABLE.findall(output)), n_lost)


def needed_hashes(root: Path, bucket: Bucket) -> tuple[set[str], int]:
    """The hashes of all data in a dvc.lock or .dvc file of any commit or the working folder; the number of lost folder listings.

    Includes the commits of all refs (branches, tags, remote-tracking branches, experiments) and all stashes: refs/stash is the
    newest, the others are only in its reflog. Listings are read from the local cache, else from the remote.
    """
    stashes = run_git(["stash", "list", "--format=%H"], root).split()
    options = ["--full-history", "--root", "-m", "--format=", "--raw", "--no-abbrev", "--no-renames"]
    lines = run_git(["log", "--all", "HEAD", *stashes, *options, "--", *DATA_FILES], root).splitlines()
    blobs = {line.split()[3] for line in lines if line.startswith(":")} - {"0" * 40}
    texts = [run_git(["cat-file", "blob", blob], root) for blob in blobs]
    names = run_git(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *DATA_FILES], root).split("\0")
    texts += [(root / name).read_text(errors="replace") for name in names if (root / name).is_file()]
    hashes = {digest for text in texts for digest in _HASH.findall(text)}
    files, missing = files_of_folders(hashes, cache_folder(root), bucket)
    return hashes | files, len(missing)
