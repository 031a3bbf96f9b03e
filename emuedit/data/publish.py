"""A station's folder: worked on in scratch, published whole, `summary.json` last.

DVC deletes a stage's outputs before it runs, so shards are made under `scratch/<station>/<fingerprint>/`. A run that was
stopped finds them there again; a run with other parameters, inputs or code has another fingerprint and starts afresh.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from emuedit.data.records import Record
from emuedit.data.shards import ShardError, read_shard

R = TypeVar("R", bound=Record)

_SUMMARY = "summary.json"


@dataclass(frozen=True)
class Summary:
    """What a published folder says about itself. It holds no clock and no host, so equal work gives equal bytes."""

    station: str
    fingerprint: str
    params: dict[str, Any]
    counts: dict[str, int]
    """Numbers worth knowing, such as `kept` and `dropped_duplicate`."""
    shards: dict[str, str]
    """Name of each file -> blake2b (16 hex digits) of its bytes."""


def fingerprint(params: Mapping[str, Any], *files: str | Path) -> str:
    """16 hex digits over the parameters (anything JSON can hold) and the content of files and folders that decide the result."""
    digest = hashlib.blake2b(json.dumps(params, sort_keys=True).encode(), digest_size=8)
    for file in map(Path, files):
        parts = sorted(part for part in file.rglob("*") if part.is_file()) if file.is_dir() else [file]
        for part in parts:
            digest.update(f"|{part.name}:{_hash(part)}".encode())
    return digest.hexdigest()


def scratch_folder(root: str | Path, station: str, mark: str) -> Path:
    """The folder in which a station works on what `mark`, its fingerprint, stands for. Shards found there are done."""
    folder = Path(root, "scratch", station, mark)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(scratch: Path, out: str | Path, station: str, params: Mapping[str, Any], counts: Mapping[str, int]) -> Summary:
    """Make `out` hold what `scratch` holds, then write `summary.json`, then forget the station's scratch.

    Stopped half-way, `out` has no summary and reads as unpublished, and nothing in scratch is lost.
    """
    out = Path(out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in sorted(scratch.iterdir()):
        if not file.name.startswith("."):  # a shard that was being written when an earlier run was stopped
            _link(file, out / file.name)
    summary = write_summary(out, station, scratch.name, params, counts)
    shutil.rmtree(scratch.parent)
    return summary


def write_summary(out: Path, station: str, mark: str, params: Mapping[str, Any], counts: Mapping[str, int]) -> Summary:
    """Write the `summary.json` that makes what a station left in `out`, sub-folders included, published."""
    files = {file.relative_to(out).as_posix(): _hash(file) for file in sorted(out.rglob("*")) if file.is_file()}
    summary = Summary(station, mark, dict(params), dict(counts), files)
    partial = out / f".{_SUMMARY}.part"
    partial.write_text(json.dumps(asdict(summary), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(out / _SUMMARY)
    return summary


def read_summary(folder: str | Path) -> Summary:
    """The summary of a published folder. Raises ShardError when it was never published."""
    path = Path(folder, _SUMMARY)
    try:
        return Summary(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ShardError(f"want a published folder with {_SUMMARY}, got none at {path}; run its station") from error
    except (ValueError, TypeError) as error:
        raise ShardError(f"{path} is no summary ({error}); run its station again") from error


def read_folder(folder: str | Path, kind: type[R], pattern: str = "shard-*.parquet", verify: bool = False) -> Iterator[R]:
    """All records of a published folder, in the order of its shards, one shard in memory at a time.

    Raises ShardError when the folder is not published, or a shard is missing, superfluous or damaged.
    """
    folder = Path(folder)
    named = sorted(name for name in read_summary(folder).shards if Path(name).match(pattern))
    found = sorted(file.name for file in folder.glob(pattern))
    if named != found:
        odd = sorted(set(named) ^ set(found))
        raise ShardError(f"want in {folder} the {len(named)} shards of its {_SUMMARY}, got {len(found)}; different: {odd[:5]}")
    for name in named:
        yield from read_shard(folder / name, kind, verify)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(file, target)


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
