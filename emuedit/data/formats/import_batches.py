"""The rows of Parquet files, in batches for one shard of imported pairs each; those of finished shards are not read."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emuedit.data import text_tables
from emuedit.data.formats.pair_format import Column, FormatError
from emuedit.data.text_tables import TableError


@dataclass(frozen=True)
class ImportBatch:
    """Rows of a file for one shard."""

    number: int
    """Of the shard."""
    file_name: str
    columns: Mapping[str, Column]
    start: int
    """Index of the first row in the file."""
    n_rows: int
    read: Callable[[], Iterable[pa.RecordBatch]]
    """Gives the rows, a part of them at a time; not called for a shard of an earlier run."""


def readable_files(files: Sequence[Path]) -> list[Path]:
    """The readable Parquet files; others are reported. Raises FormatError if there are none."""
    readable, problems = [], []
    for file in files:
        try:
            text_tables.check_file(file)
            pq.read_metadata(file)
            readable.append(file)
        except (TableError, pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            problems.append(reason if isinstance(error, TableError) else f"want a Parquet file, got {file}: {reason}")
    if not readable:
        raise FormatError("; ".join(problems[:3]))
    for problem in problems:
        print(f"import: skipped: {problem}", flush=True)
    return readable


def read_batches(
    files: Sequence[Path],
    columns: Sequence[Mapping[str, Column]],
    rows_per_shard: int,
    counts: Counter[str],
    is_finished: Callable[[int], bool],
) -> Iterator[ImportBatch]:
    """Read the files in batches. `columns`: the column definitions of each file. A damaged file is read up to the damage.

    `is_finished`: whether the shard of a number is. The first batches of a file are not read if theirs are. The numbers of a
    damaged file's other shards are left out. `counts` gets `dropped_files_damaged`.
    """
    n_earlier = 0
    for file, file_columns in zip(files, columns, strict=True):
        parquet = pq.ParquetFile(file)
        n_rows = parquet.metadata.num_rows
        starts = range(0, n_rows, rows_per_shard)
        numbers = range(n_earlier, n_earlier + len(starts))
        n_finished = len(list(takewhile(is_finished, numbers)))
        for number, start in zip(numbers[:n_finished], starts, strict=False):
            yield ImportBatch(number, file.name, file_columns, start, min(rows_per_shard, n_rows - start), tuple)
        start = n_finished * rows_per_shard
        try:
            for number, parts in zip(numbers[n_finished:], _read_from(parquet, start, rows_per_shard), strict=True):
                n_batch = sum(part.num_rows for part in parts)
                yield ImportBatch(number, file.name, file_columns, start, n_batch, partial(iter, parts))
                start += n_batch
        except (pa.ArrowException, OSError) as error:
            counts["dropped_files_damaged"] += 1
            print(f"import: {file} is damaged after row {start}, skipped the rest: {str(error).splitlines()[0]}", flush=True)
        n_earlier += len(starts)


def _read_from(file: pq.ParquetFile, start: int, rows_per_shard: int) -> Iterator[list[pa.RecordBatch]]:
    """Parts with `rows_per_shard` rows together, fewer only at the end, from row `start`. Row groups before it are not read.

    pyarrow's batches end with their row group if any column of the file has a dictionary, as those of pandas' categories have.
    """
    groups = range(file.metadata.num_row_groups)
    first_rows = [0, *accumulate(file.metadata.row_group(group).num_rows for group in groups)]
    first = sum(end <= start for end in first_rows[1:])
    n_skipped = start - first_rows[first]
    parts: list[pa.RecordBatch] = []
    n_wanted = rows_per_shard
    for batch in file.iter_batches(batch_size=rows_per_shard, row_groups=list(groups[first:])):
        rest = batch.slice(n_skipped)
        n_skipped -= batch.num_rows - rest.num_rows
        while rest.num_rows:
            parts.append(rest.slice(0, n_wanted))
            n_wanted -= parts[-1].num_rows
            rest = rest.slice(parts[-1].num_rows)
            if not n_wanted:
                yield parts
                parts, n_wanted = [], rows_per_shard
    if parts:
        yield parts
