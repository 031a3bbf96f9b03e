"""Import Parquet files of a known format, or image files, as a published folder of Pair, with a data card; nothing is filtered.

Out: `shard-*.parquet` of Pair, `dropped-*.parquet` of Drop, `card.md`, and `summary.json` with source and licence.
The same command resumes a stopped import.

Unreadable rows are dropped and counted. An unreadable file among readable ones is reported, skipped and counted in the card, so
that one bad file does not stop an import.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emuedit import tasks
from emuedit.data import colour_profile, example_folder, image_exif, image_formats, image_io, text_tables
from emuedit.data.dependencies import SUMMARY_FILE, content_key
from emuedit.data.example_folder import ExampleEdit
from emuedit.data.file_hashes import HashMemory, hash_file
from emuedit.data.formats import pair_folder
from emuedit.data.formats.pair_format import Column, FormatError
from emuedit.data.formats.row_conversion import AssignTasks, ImportOptions, RowRejected, duplicate_key
from emuedit.data.name_list import first_names
from emuedit.data.publish import Summary, publish, read_summary, resumable_shards, scratch_folder, scratch_name
from emuedit.data.records import Drop, Pair
from emuedit.data.text_tables import BadRow, TableError
from emuedit.data.threads import map_in_threads
from emuedit.data.writable_folder import check_writable
from emuedit.progress import Progress

CARD = "card.md"
ROWS_PER_SHARD = 256
"""Largest number of rows of a shard: in memory at a time, and the unit of work for restarts."""
_CARD_TEMPLATE = """\
# Data card: imported pairs

{pairs} pairs of `{source}`, in the format {layout}. Licence: {licence}. Tasks: {task}. Images: {size}.

| reason | dropped |
|---|---:|
{dropped}

Nothing was filtered by its content. The texts are those of the dataset, with single spaces. The images are upright,
without transparency and in sRGB{scaled}. Pairs that share an image share their second parent id, which training uses for the
held-out split.
"""


def import_pairs(options: ImportOptions, files: Sequence[Path], out: Path, root: Path) -> Summary:
    """Import Parquet files shard by shard and publish them to `out`; the scratch folder is below `root`.

    Raises FormatError for files of another format, for an `out` with other contents, and if no pair remains.
    """
    check_output_folder(out, "import")
    n_files, files = len(files), _readable(files)
    columns = [options.pair_format.match_columns(pq.read_schema(file), str(file)) for file in files]
    counts = Counter({"dropped_files_unreadable": n_files - len(files)} if len(files) < n_files else {})
    n_rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    rows = _Rows(_read_batches(files, columns, counts), n_rows, files)
    return _import(options, rows, counts, out, root, HashMemory(root))


def import_examples(options: ImportOptions, examples: Sequence[ExampleEdit], out: Path, root: Path) -> Summary:
    """Import image files before and after an edit, in the format of `pair_folder`. Errors: as `import_pairs`."""
    check_output_folder(out, "import")
    files = sorted({file for example in examples for file in (example.before, example.after)})
    columns, memory = options.pair_format.columns, HashMemory(root)
    max_bytes = pair_folder.BYTES_PER_SHARD if options.size is None else float("inf")
    batches = (
        _Batch(example_folder.TABLE, columns, start, end - start, partial(pair_folder.read_rows, examples[start:end], memory))
        for start, end in pair_folder.split_into_shards(examples, ROWS_PER_SHARD, max_bytes)
    )
    texts = hashlib.blake2b(digest_size=8)
    for example in examples:
        texts.update(repr(example).encode())
    return _import(options, _Rows(batches, len(examples), files, texts.hexdigest()), Counter(), out, root, memory)


def _import(options: ImportOptions, rows: "_Rows", counts: Counter[str], out: Path, root: Path, memory: HashMemory) -> Summary:
    """Convert and publish the rows. counts: of unreadable files, which the rows also update. memory: of the files' hashes."""
    pair_format = options.pair_format
    params = {
        "layout": pair_format.name,
        "source": pair_format.source,
        "licence": pair_format.licence,
        "task": options.task_origin,
        "size": f"{options.size} px per side" if options.size else "original sizes",
    }
    code = sorted(Path(__file__).parent.glob("*.py"))
    code += [Path(str(module.__file__)) for module in (image_io, image_formats, image_exif, colour_profile, tasks)]
    inputs = (*rows.files, *code)
    key = content_key({"texts": rows.texts, **params}, *inputs, label=f"import {pair_format.name}: hash files", memory=memory)
    scratch = scratch_folder(root, scratch_name("import", out), key)
    seen: set[bytes] = set()
    with Progress(f"import {pair_format.name}", rows.n_rows, "pair") as progress:
        convert = partial(_convert_batch, options=options, seen=seen, advance=progress.advance)
        for shard in resumable_shards(scratch, rows.batches, convert, Pair):
            seen.update(map(duplicate_key, shard.records))
            counts["pairs"] += len(shard.records)
            counts.update(f"pairs_{pair.task}" for pair in shard.records)
            counts.update(f"dropped_{drop.reason}" for drop in shard.drops)
            if shard.resumed:
                progress.advance(shard.source.n_rows)
    if not counts["pairs"]:
        raise FormatError(
            f"want at least one pair in {len(rows.files)} files, got {dict(counts)}; see {scratch}/dropped-*.parquet"
        )
    dropped = [f"| {key.removeprefix('dropped_')} | {n} |" for key, n in sorted(counts.items()) if key.startswith("dropped_")]
    scaled = f", cropped to their centre square and scaled to {options.size} px" if options.size else ""
    card = _CARD_TEMPLATE.format(**params, scaled=scaled, pairs=counts["pairs"], dropped="\n".join(dropped) or "| none | 0 |")
    (scratch / CARD).write_text(card, encoding="utf-8")
    check_output_folder(out, "import")  # an import may take hours
    return publish(scratch, out, "import", params, counts)


def find_parquet_files(folder: Path, pattern: str) -> list[Path]:
    """The matching Parquet files in a folder tree, sorted. Raises FormatError if there are none."""
    files = sorted(file for file in folder.rglob(pattern) if file.suffix == ".parquet")
    if not files:
        raise FormatError(
            f"want Parquet files {pattern} below {folder}, got none; download the dataset's Parquet files, or set --files"
        )
    return files


def check_output_folder(out: Path, command: str) -> None:
    """Raise FormatError unless `out` is new, is empty, or has only what the same command published there.

    `publish` deletes `out`. So files that the command did not write are an error, as are texts and sheets that were edited since;
    Parquet files may be too large to compare. Raises FolderError if `out` cannot be written.
    """
    check_writable(out.parent)
    summary = read_summary(out) if (out / SUMMARY_FILE).is_file() else None
    if summary is None or summary.stage != command:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FormatError(f"want a new folder to write to, got {out}, which has other contents; name another")
        return
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}
    others = sorted(files.keys() - {SUMMARY_FILE, *summary.shards})
    texts = sorted(name for name in files.keys() & summary.shards.keys() if not name.endswith(".parquet"))
    others += [f"{name} (edited)" for name in texts if hash_file(files[name]) != summary.shards[name]]
    if others:
        raise FormatError(
            f"want a folder with only what `emuedit {command}` wrote, got other or edited files in {out} that would be deleted: "
            f"{first_names(others)}; move them or name another folder"
        )


@dataclass(frozen=True)
class _Batch:
    """Rows of a file for one shard."""

    file_name: str
    columns: Mapping[str, Column]
    start: int
    """Index of the first row in the file."""
    n_rows: int
    read: Callable[[], Iterable[pa.RecordBatch]]
    """Gives the rows, a part of them at a time; not called for a shard of an earlier run."""


@dataclass(frozen=True)
class _Rows:
    """The rows to import."""

    batches: Iterator[_Batch]
    n_rows: int
    files: Sequence[Path]
    """Files with their content."""
    texts: str = ""
    """Hash of the content that is not in the files."""


def _readable(files: Sequence[Path]) -> list[Path]:
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


def _read_batches(files: Sequence[Path], columns: Sequence[Mapping[str, Column]], counts: Counter[str]) -> Iterator[_Batch]:
    """Read the files in batches. `columns`: the column definitions of each file. A damaged file is read up to the damage."""
    for file, file_columns in zip(files, columns, strict=True):
        start = 0
        try:
            for rows in pq.ParquetFile(file).iter_batches(batch_size=ROWS_PER_SHARD):
                yield _Batch(file.name, file_columns, start, rows.num_rows, partial(iter, (rows,)))
                start += rows.num_rows
        except (pa.ArrowException, OSError) as error:
            counts["dropped_files_damaged"] += 1
            print(f"import: {file} is damaged after row {start}, skipped the rest: {str(error).splitlines()[0]}", flush=True)


def _convert_batch(
    batch: _Batch, options: ImportOptions, seen: set[bytes], advance: Callable[[int], None]
) -> tuple[list[Pair], list[Drop]]:
    """Convert rows to pairs with tasks, and to drops, in threads. `seen`: keys of all pairs so far; new ones are added to it.

    advance: called with numbers of converted rows.
    """
    (instruction_column,) = (name for name, column in batch.columns.items() if column.field == "instruction")
    convert = partial(options.convert_row, columns=batch.columns)
    pairs: list[Pair] = []
    drops: list[Drop] = []
    start = batch.start
    for part in batch.read():
        rows = list(text_tables.to_rows(part))
        results = map_in_threads(convert, [row for row in rows if not isinstance(row, BadRow)])
        for index, row in enumerate(rows, start=start):
            if isinstance(row, BadRow):
                drops.append(Drop(row.text, row.reason, batch.file_name, index))
                advance(1)
                continue
            result = next(results)
            advance(1)
            if isinstance(result, Pair) and duplicate_key(result) in seen:
                result = RowRejected("duplicate")
            if isinstance(result, RowRejected):
                drops.append(Drop(row[instruction_column] or "", result.reason, batch.file_name, index))
            else:
                seen.add(duplicate_key(result))
                pairs.append(result)
        start += len(rows)
    return _set_tasks(pairs, options.assign_tasks), drops


def _set_tasks(pairs: list[Pair], assign_tasks: AssignTasks | None) -> list[Pair]:
    if assign_tasks is None or not pairs:
        return pairs
    names = assign_tasks([pair.instruction for pair in pairs])
    return [replace(pair, task=task) for pair, task in zip(pairs, names, strict=True)]
