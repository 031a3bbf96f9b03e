"""From Parquet files in a known layout to a published folder of Pair, with a card. Nothing is judged here.

Out: `shard-*.parquet` of Pair, `dropped-*.parquet` of Drop, `card.md`, and `summary.json` with source and licence.
A stopped import goes on where it was when it is asked for again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from emuedit.data import image_io
from emuedit.data.formats.pair_format import Column, FormatError
from emuedit.data.formats.row_conversion import ImportOptions, Tasks, mark
from emuedit.data.publish import Summary, fingerprint, publish, read_summary, scratch_folder
from emuedit.data.records import Drop, Pair
from emuedit.data.shards import read_shard, write_shard

CARD = "card.md"
ROWS = 256  # of a shard: what is in memory at once, and what a restart does not repeat
_TEXT = """\
# Data card: imported pairs

{pairs} pairs of `{source}`, in the layout {layout}. Licence: {licence}. Tasks: {task}. Pictures: {size}.

| reason | dropped |
|---|---:|
{dropped}

The pictures, instructions and captions are their makers'. They were decoded and not judged. Pairs that share a picture share
their second parent, by which training holds out.
"""


def run(wanted: ImportOptions, files: Sequence[Path], out: Path, root: Path) -> Summary:
    """Import Parquet files, shard by shard, and publish to `out`; scratch lies below `root`.

    Raises FormatError for files in another layout, for an `out` that holds other things, and when no pair is left.
    """
    free(out, "import")
    columns = [wanted.layout.read_as(pq.read_schema(file), str(file)) for file in files]
    layout = wanted.layout
    knobs = {"layout": layout.name, "source": layout.source, "licence": layout.licence}
    knobs |= {"task": wanted.task, "size": f"{wanted.size} px a side" if wanted.size else "as they came"}
    code = sorted(Path(__file__).parent.glob("*.py"))
    scratch = scratch_folder(root, "import", fingerprint(knobs, *files, *code, image_io.__file__))
    seen: set[bytes] = set()
    counts: Counter[str] = Counter()
    n_rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    with tqdm(total=n_rows, unit="pair", desc=f"import {layout.name}") as bar:
        for number, (file, own, start, batch) in enumerate(_batches(files, columns)):
            pair_path, drop_path = scratch / f"shard-{number:05d}.parquet", scratch / f"dropped-{number:05d}.parquet"
            if pair_path.exists():  # written after its drops, so both are there
                pairs, drops = read_shard(pair_path, Pair), read_shard(drop_path, Drop)
                seen.update(map(mark, pairs))
            else:
                pairs, drops = _shard(batch, file.name, start, own, wanted, seen)
                write_shard(drop_path, drops, Drop)
                write_shard(pair_path, pairs, Pair)
            counts["pairs"] += len(pairs)
            counts.update(f"pairs_{one.task}" for one in pairs)
            counts.update(f"dropped_{one.reason}" for one in drops)
            bar.update(batch.num_rows)
    if not counts["pairs"]:
        raise FormatError(f"want at least one pair in {len(files)} files, got {dict(counts)}; see {scratch}/dropped-*.parquet")
    dropped = [f"| {key.removeprefix('dropped_')} | {n} |" for key, n in sorted(counts.items()) if key.startswith("dropped_")]
    card = _TEXT.format(**knobs, pairs=counts["pairs"], dropped="\n".join(dropped) or "| none | 0 |")
    (scratch / CARD).write_text(card, encoding="utf-8")
    return publish(scratch, out, "import", knobs, counts)


def found(folder: Path, pattern: str) -> list[Path]:
    """The Parquet files below a folder whose names match, in order. Raises FormatError when there are none."""
    files = sorted(file for file in folder.rglob(pattern) if file.suffix == ".parquet")
    if not files:
        raise FormatError(f"want Parquet files {pattern} below {folder}, got none; download the dataset's own, or say --files")
    return files


def free(out: Path, station: str) -> None:
    """FormatError unless `out` is new, empty, or was published by the same station: publishing takes its place."""
    ours = (out / "summary.json").is_file() and read_summary(out).station == station
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise FormatError(f"want a new folder to write to, got {out}, which holds other things; name another")


def _batches(
    files: Sequence[Path], columns: Sequence[Mapping[str, Column]]
) -> Iterator[tuple[Path, Mapping[str, Column], int, pa.RecordBatch]]:
    """(file, its columns, number of the first row in it, rows) of every shard to be."""
    for file, own in zip(files, columns, strict=True):
        start = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS):
            yield file, own, start, batch
            start += batch.num_rows


def _shard(
    batch: pa.RecordBatch, name: str, start: int, columns: Mapping[str, Column], wanted: ImportOptions, seen: set[bytes]
) -> tuple[list[Pair], list[Drop]]:
    """Pairs, with their tasks, and what is dropped. Duplicates are told from all shards so far."""
    (instruction,) = (key for key, column in columns.items() if column.field == "instruction")
    pairs, drops = [], []
    for index, row in enumerate(batch.to_pylist(), start=start):
        made = wanted.pair(row, columns)
        if isinstance(made, Pair) and mark(made) in seen:
            made = "duplicate"
        if isinstance(made, Pair):
            seen.add(mark(made))
            pairs.append(made)
        else:
            drops.append(Drop(row[instruction] or "", made, name, index))
    return _told(pairs, wanted.tasks), drops


def _told(pairs: list[Pair], tasks: Tasks | None) -> list[Pair]:
    if tasks is None or not pairs:
        return pairs
    return [replace(one, task=task) for one, task in zip(pairs, tasks([one.instruction for one in pairs]), strict=True)]
