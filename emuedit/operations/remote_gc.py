"""A guard around `dvc gc --cloud`, which deletes from a remote all data that the commits of a clone do not need.

An object goes only if both DVC, in a dry run, and the scan of this module find that no commit needs it. DVC alone is not enough:
it skips a commit whose dvc.yaml it cannot read, and when forced it deletes, without a word, the files of a folder whose listing
it failed to get.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from emuedit.operations.bucket import Bucket
from emuedit.operations.clone_check import DATA_FILES
from emuedit.operations.dvc_remote import run_dvc, run_git
from emuedit.operations.remote_error import RemoteError

KEEP = ("--workspace", "--all-commits", "--all-experiments")
"""What DVC keeps: the data of the working folder, of every commit of every branch and tag, and of every DVC experiment."""
_REMOVING = re.compile(r"^Removing (.+)$", re.MULTILINE)
_REMOVED = re.compile(r"^Removed (\d+) objects from ", re.MULTILINE)
_UNREADABLE = re.compile(r"Failed to collect '")
_HASH = re.compile(r"\bmd5: ['\"]?([0-9a-f]{32}(?:\.dir)?)\b")
_OBJECTS = "files/md5/"  # DVC's folder in a remote and in its cache


@dataclass(frozen=True)
class RemovalPlan:
    """`sizes`: bytes by key of the objects that no commit needs. The counts are what a person should know before agreeing."""

    sizes: dict[str, int]
    n_protected: int
    """Objects that DVC would delete, and that a commit names nevertheless."""
    n_unreadable_commits: int
    n_lost_folders: int
    """Folders of commits whose listing is neither in the cache nor in the remote, so that their files are not known."""


def plan_removal(root: Path, remote: str, bucket: Bucket) -> RemovalPlan:
    """What can be deleted from the DVC remote of this name. Deletes nothing. Raises RemoteError when DVC or the store fails."""
    output = run_dvc(["gc", "--cloud", "--remote", remote, *KEEP, "--skip-failed", "--dry"], root, with_warnings=True)
    paths = _REMOVING.findall(output)
    if (n_announced := sum(map(int, _REMOVED.findall(output)))) != len(paths):
        raise RemoteError(
            f"want {n_announced} paths from `dvc gc --dry`, got {len(paths)}; this version of DVC prints something else"
        )
    place = bucket.location
    start = f"{place.bucket}/{place.key(_OBJECTS)}"
    digests = {path.removeprefix(start).replace("/", "") for path in paths if path.startswith(start)}
    needed, n_lost = needed_hashes(root, bucket)
    sizes = bucket.sizes(_OBJECTS)
    removable = {place.key(f"{_OBJECTS}{digest[:2]}/{digest[2:]}") for digest in digests - needed}
    plan = {key: size for key, size in sizes.items() if key in removable}
    return RemovalPlan(plan, len(digests & needed), len(_UNREADABLE.findall(output)), n_lost)


def needed_hashes(root: Path, bucket: Bucket) -> tuple[set[str], int]:
    """The hashes of all data that a dvc.lock or .dvc file of any commit names, and how many listings of folders are lost.

    Commits are those of every ref: branches, tags, copies of remote branches, experiments, and of every stash: refs/stash is the
    newest one, the others are in its reflog only. Listings come from the local cache, else from the remote.
    """
    stashes = run_git(["stash", "list", "--format=%H"], root).split()
    options = ["--full-history", "--root", "-m", "--format=", "--raw", "--no-abbrev", "--no-renames"]
    lines = run_git(["log", "--all", "HEAD", *stashes, *options, "--", *DATA_FILES], root).splitlines()
    blobs = {line.split()[3] for line in lines if line.startswith(":")} - {"0" * 40}
    hashes = {digest for blob in blobs for digest in _HASH.findall(run_git(["cat-file", "blob", blob], root))}
    cache = root / run_dvc(["cache", "dir"], root).strip()
    n_lost = 0
    for folder in sorted(digest for digest in hashes if digest.endswith(".dir")):
        name = f"{_OBJECTS}{folder[:2]}/{folder[2:]}"
        content = (cache / name).read_bytes() if (cache / name).exists() else bucket.get(name)
        if content is None:
            n_lost += 1
        else:
            hashes.update(entry["md5"] for entry in json.loads(content))
    return hashes, n_lost
