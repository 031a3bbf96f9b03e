"""A stage's output folder: made shard by shard in scratch, published as a whole, `summary.json` last.

DVC deletes a stage's outputs before it runs, so shards are made under `scratch/<stage>/<key>/`. A run that was stopped finds them
there again. A run with other params, inputs or code has another key and starts afresh.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import SUMMARY_FILE, hash_file
from emuedit.data.records import Drop, Record
from emuedit.data.shards import ShardError, read_shard, write_shard

R = TypeVar("R", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """What a published folder says about itself. It holds no time and no host name, so equal work gives equal bytes."""

    stage: str
    key: str
    """Key of the work that made it, see `dependencies.work_key`."""
    params: dict[str, Any]
    counts: dict[str, int]
    """Numbers worth knowing, such as `kept` and `dropped_duplicate`."""
    shards: dict[str, str]
    """Name of each file -> blake2b (16 hex digits) of its bytes."""


def scratch_folder(root: str | Path, stage: str, key: str) -> Path:
    """The folder in which a stage works on what `key` stands for. Shards found there are finished."""
    folder = Path(root, "scratch", stage, key)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Shard(Generic[T, R]):
    """One unit of work: what it was made from, its records, and what was dropped on the way."""

    source: T
    records: list[R]
    drops: list[Drop]
    resumed: bool
    """Whether an earlier run had made it."""


def resumable_shards(
    scratch: Path, sources: Iterable[T], make: Callable[[T], tuple[list[R], list[Drop]]], kind: type[R]
) -> Iterator[Shard[T, R]]:
    """For each source, the shard that an earlier run left in scratch, or a new one from `make`, in order.

    Shard N lies in `shard-N.parquet` and its drops in `dropped-N.parquet`.
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
    """Where shard `number` lies."""
    return scratch / f"shard-{number:05d}.parquet"


def drops_path(shard: Path) -> Path:
    """Where the drops of a shard lie."""
    return shard.with_name(shard.name.replace("shard", "dropped"))


def write_with_drops(path: Path, records: Sequence[R], drops: Sequence[Drop], kind: type[R]) -> None:
    """Write a shard after its drops: where the shard is, both are complete."""
    write_shard(drops_path(path), drops, Drop)
    write_shard(path, records, kind)


def publish(scratch: Path, out: str | Path, stage: str, params: Mapping[str, Any], counts: Mapping[str, int]) -> Summary:
    """Make `out` hold what `scratch` holds, write `summary.json`, then delete the stage's scratch, that of other keys included.

    Stopped half-way, `out` has no summary and reads as unpublished, and nothing in scratch is lost.
    """
    out = Path(out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in sorted(scratch.iterdir()):
        if not file.name.startswith("."):  # a file that was being written when an earlier run was stopped
            _link(file, out / file.name)
    summary = write_summary(out, stage, scratch.name, params, counts)
    shutil.rmtree(scratch.parent)
    return summary


def write_summary(out: Path, stage: str, key: str, params: Mapping[str, Any], counts: Mapping[str, int]) -> Summary:
    """Write the `summary.json` that makes `out` a published folder; it lists every file, sub-folders included."""
    files = {file.relative_to(out).as_posix(): hash_file(file) for file in sorted(out.rglob("*")) if file.is_file()}
    summary = Summary(stage, key, dict(params), dict(counts), files)
    with replacing(out / SUMMARY_FILE) as partial:
        partial.write_text(json.dumps(asdict(summary), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return summary


def read_summary(folder: str | Path) -> Summary:
    """The summary of a published folder. Raises ShardError when it was never published."""
    path = Path(folder, SUMMARY_FILE)
    try:
        return Summary(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ShardError(f"want a published folder with {SUMMARY_FILE}, got none at {path}; run its stage") from error
    except (ValueError, TypeError) as error:
        raise ShardError(f"{path} is not a summary ({error}); run its stage again") from error


def read_folder(folder: str | Path, kind: type[R], pattern: str = "shard-*.parquet", verify: bool = False) -> Iterator[R]:
    """All records of a published folder, in the order of its shards, one shard in memory at a time.

    Raises ShardError when the folder is not published, or a shard is missing, superfluous or damaged.
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


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(file, target)
