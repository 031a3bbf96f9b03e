"""A stage's output folder: written shard by shard in scratch, then published, `summary.json` last.

DVC deletes a stage's outputs before it runs, so shards are written to `scratch/<stage>/<key>/`, where a restarted run finds
them. A run with other params, inputs or code has another key and starts from the beginning.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from emuedit.data.atomic_file import link_or_copy, replacing
from emuedit.data.dependencies import SUMMARY_FILE, content_key
from emuedit.data.file_hashes import hash_all, hash_file
from emuedit.data.records import Drop, Record
from emuedit.data.shards import ShardError, read_shard, write_shard
from emuedit.data.writable_folder import contents
from emuedit.progress import Progress

LOGS = "logs"
STATS_FILE, PREVIEWS = "stats.jsonl", "previews"
"""What a stage logs while it runs. It has times in it, so it is no part of the stage's output: equal work gives equal bytes."""
_PARAMS_FILE = ".params.json"
R = TypeVar("R", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """Description of a published folder. Without time and host name, so that equal work gives equal bytes."""

    stage: str
    key: str
    """Hash (16 hex digits) of the rest of this record; of `models/editor` the key of the training.

    The key of the work would change the bytes of an equal result, and with them, for DVC and our keys, all later stages."""
    params: dict[str, Any]
    counts: dict[str, int]
    """Counts, such as `kept` and `dropped_duplicate`."""
    shards: dict[str, str]
    """Name of each file -> blake2b (16 hex digits) of its bytes."""


def scratch_folder(root: str | Path, stage: str, key: str, params: Mapping[str, Any] | None = None) -> Path:
    """The folder in which a stage works on what `key` stands for. Shards found there are finished.

    `params`: those that `key` covers. Unfinished work under another key is then reported with what changed: it is not continued,
    and deleted when this work is published.
    """
    folder = Path(root, "scratch", stage, key)
    folder.mkdir(parents=True, exist_ok=True)
    if params is not None:
        described: dict[str, Any] = json.loads(json.dumps(params))
        for file in sorted(folder.parent.glob(f"*/{_PARAMS_FILE}")):
            if file.parent != folder:
                try:
                    earlier = json.loads(file.read_text(encoding="utf-8"))
                except (FileNotFoundError, ValueError):  # deleted in the meantime, or cut short by a power loss
                    continue
                changed = [name for name in sorted({*described, *earlier}) if described.get(name) != earlier.get(name)]
                reason = ", ".join(changed) or "its code or input"
                print(
                    f"{stage}: the unfinished work in {file.parent} is not continued, because {reason} changed; to go on with "
                    "it, change that back before this run ends and deletes it",
                    flush=True,
                )
        with replacing(folder / _PARAMS_FILE, os.getpid()) as partial:
            partial.write_text(json.dumps(described), encoding="utf-8")
    return folder


def cache_folder(cache: Path, key: str) -> Path:
    """The folder in `cache` of what `key` stands for, made if missing. Whatever else is in `cache` is deleted."""
    folder = cache / key
    folder.mkdir(parents=True, exist_ok=True)
    for old in set(cache.iterdir()) - {folder}:
        _delete(old)
    return folder


def empty_folder(folder: Path) -> None:
    """Delete the contents of a folder, `summary.json` first; make it if missing.

    A link to it and a mount point are kept, and the `lost+found` of a file system.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    for path in contents(folder):
        _delete(path)


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def scratch_name(command: str, out: Path) -> str:
    """Name of the scratch of a command that writes to any folder `out`: `publish` deletes all work under a name."""
    out = out.resolve()
    return f"{command}-{out.name}-{content_key({'out': str(out)})}"


@dataclass(frozen=True)
class Shard(Generic[T, R]):
    """A unit of work: source, records and drops."""

    source: T
    records: list[R]
    drops: list[Drop]
    resumed: bool
    """Whether an earlier run wrote it."""


def resumable_shards(
    scratch: Path, sources: Iterable[T], make: Callable[[T], tuple[list[R], list[Drop]]], kind: type[R]
) -> Iterator[Shard[T, R]]:
    """For each source, in order: the shard in scratch of an earlier run, or a new one from `make`.

    Shard N is in `shard-N.parquet`, its drops in `dropped-N.parquet`.
    """
    for number, source in enumerate(sources):
        path = shard_path(scratch, number)
        if path.exists():
            yield Shard(source, read_shard(path, kind), read_shard(drops_path(path), Drop), resumed=True)
            continue
        records, drops = make(source)
        write_with_drops(path, records, drops, kind)
        yield Shard(source, records, drops, resumed=False)


def shard_path(scratch: Path, number: int) -> Path:
    """Path of shard `number`."""
    return scratch / f"shard-{number:05d}.parquet"


def drops_path(shard: Path) -> Path:
    """Path of a shard's drops."""
    return shard.with_name(shard.name.replace("shard", "dropped"))


def write_with_drops(path: Path, records: Sequence[R], drops: Sequence[Drop], kind: type[R]) -> None:
    """Write the drops, then the shard: if the shard exists, both are complete."""
    write_shard(drops_path(path), drops, Drop)
    write_shard(path, records, kind)


def logs_folder(root: Path, stage: str) -> Path:
    """The folder with the logs of a stage's last finished run. Neither DVC nor git tracks it."""
    return root / LOGS / stage


def publish_logs(scratch: Path, root: Path, stage: str) -> None:
    """Copy the logs of a run from its scratch to `logs/<stage>`, in place of those of the run before."""
    folder = logs_folder(root, stage)
    empty_folder(folder)
    shutil.copy2(scratch / STATS_FILE, folder / STATS_FILE)
    if (scratch / PREVIEWS).is_dir():
        shutil.copytree(scratch / PREVIEWS, folder / PREVIEWS)


def publish(scratch: Path, out: str | Path, stage: str, params: Mapping[str, Any], counts: Mapping[str, int]) -> Summary:
    """Link the files of `scratch`, except logs, into `out`, write `summary.json`, then delete all scratch of the stage.

    If interrupted, `out` has no summary and counts as unpublished, and scratch is intact.
    """
    out = Path(out)
    empty_folder(out)
    for file in sorted(scratch.iterdir()):
        if not file.name.startswith(".") and file.name not in (STATS_FILE, PREVIEWS):  # "." begins unfinished files
            link_or_copy(file, out / file.name)
    summary = write_summary(out, stage, None, params, counts)
    shutil.rmtree(scratch.parent)
    return summary


def write_summary(out: Path, stage: str, key: str | None, params: Mapping[str, Any], counts: Mapping[str, int]) -> Summary:
    """Write the `summary.json` that makes `out` a published folder; it lists every file, including sub-folders.

    `key`: of the summary; None: the hash of its content.
    """
    files = [file for file in sorted(out.rglob("*")) if file.is_file()]
    with Progress(f"{stage}: hash output", len(files), "file", only_if_long=True) as progress:
        hashes = hash_all(files, advance=progress.advance)
    listed = {file.relative_to(out).as_posix(): content for file, content in zip(files, hashes, strict=True)}
    summary = Summary(stage, key or "", dict(params), dict(counts), listed)
    if key is None:
        summary = replace(summary, key=content_key(asdict(summary)))
    with replacing(out / SUMMARY_FILE) as partial:
        partial.write_text(json.dumps(asdict(summary), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return summary


def read_summary(folder: str | Path) -> Summary:
    """The summary of a published folder. Raises ShardError for an unpublished folder."""
    path = Path(folder, SUMMARY_FILE)
    try:
        return Summary(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ShardError(f"want a published folder with {SUMMARY_FILE}, got none at {path}; run its stage") from error
    except (ValueError, TypeError) as error:
        raise ShardError(f"{path} is not a summary ({error}); run its stage again") from error


def read_folder(folder: str | Path, kind: type[R], pattern: str = "shard-*.parquet", verify: bool = False) -> Iterator[R]:
    """All records of a published folder, in the order of its shards, one shard in memory at a time.

    Raises ShardError for an unpublished folder, and for a missing, extra or damaged shard.
    """
    folder = Path(folder)
    listed = sorted(name for name in read_summary(folder).shards if Path(name).match(pattern))
    present = sorted(file.name for file in folder.glob(pattern))
    if listed != present:
        different = sorted(set(listed) ^ set(present))
        raise ShardError(
            f"want in {folder} the {len(listed)} shards of its {SUMMARY_FILE}, got {len(present)}; different: {different[:5]}"
        )
    for name in listed:
        yield from read_shard(folder / name, kind, verify)


def has_its_bytes(folder: Path) -> bool:
    """Whether the files of a published folder have the hashes in its summary; True for a folder without one."""
    if not (folder / SUMMARY_FILE).is_file():
        return True
    return all(hash_file(folder / name) == value for name, value in read_summary(folder).shards.items())
