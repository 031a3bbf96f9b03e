"""Import Parquet files of a known format, or image files, as a published folder of Pair, with a data card; nothing is filtered.

Out: `shard-*.parquet` of Pair, `dropped-*.parquet` of Drop, `card.md`, and `summary.json` with source and licence.
The same command resumes a stopped import.

Unreadable rows are dropped and counted. An unreadable file among readable ones is reported, skipped and counted in the card, so
that one bad file does not stop an import.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from emuedit import tasks
from emuedit.data import colour_profile, example_folder, image_exif, image_formats, image_io, text_tables
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import SUMMARY_FILE, content_key
from emuedit.data.example_folder import ExampleEdit
from emuedit.data.file_hashes import HashMemory, hash_file
from emuedit.data.formats import pair_folder
from emuedit.data.formats.import_batches import ImportBatch, read_batches, readable_files
from emuedit.data.formats.pair_format import FormatError
from emuedit.data.formats.row_conversion import AssignTasks, ImportOptions, RowRejected, duplicate_key
from emuedit.data.name_list import first_names
from emuedit.data.publish import (
    Summary,
    drops_path,
    publish,
    read_summary,
    scratch_folder,
    scratch_name,
    shard_path,
    write_with_drops,
)
from emuedit.data.records import Drop, Pair
from emuedit.data.shards import read_fields, read_shard
from emuedit.data.text_tables import BadRow
from emuedit.data.threads import map_in_threads
from emuedit.data.writable_folder import check_writable, contents
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
    n_files, files = len(files), readable_files(files)
    columns = [options.pair_format.match_columns(pq.read_schema(file), str(file)) for file in files]
    counts = Counter({"dropped_files_unreadable": n_files - len(files)} if len(files) < n_files else {})
    n_rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    rows = _Rows(partial(read_batches, files, columns, ROWS_PER_SHARD, counts), n_rows, files)
    return _import(options, rows, counts, out, root, HashMemory(root))


def import_examples(options: ImportOptions, examples: Sequence[ExampleEdit], out: Path, root: Path) -> Summary:
    """Import image files before and after an edit, in the format of `pair_folder`. Errors: as `import_pairs`."""
    check_output_folder(out, "import")
    files = sorted({file for example in examples for file in (example.before, example.after)})
    columns, memory = options.pair_format.columns, HashMemory(root)
    max_bytes = pair_folder.BYTES_PER_SHARD if options.size is None else float("inf")
    read = partial(pair_folder.read_rows, memory=memory)
    batches = (
        ImportBatch(number, example_folder.TABLE, columns, start, end - start, partial(read, examples[start:end]))
        for number, (start, end) in enumerate(pair_folder.split_into_shards(examples, ROWS_PER_SHARD, max_bytes))
    )
    texts = hashlib.blake2b(digest_size=8)
    for example in examples:
        texts.update(repr(example).encode())
    return _import(options, _Rows(lambda _: batches, len(examples), files, texts.hexdigest()), Counter(), out, root, memory)


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
        for batch in rows.batches(lambda number: shard_path(scratch, number).exists()):
            path = shard_path(scratch, batch.number)
            if not path.exists():
                pairs, drops = _convert_batch(batch, options, seen, progress.advance)
                with replacing(_keys_path(path)) as file:
                    file.write_text("\n".join(key.hex() for key in pairs), encoding="utf-8")
                write_with_drops(path, list(pairs.values()), drops, Pair)
                names = [pair.task for pair in pairs.values()]
            else:  # of an earlier run; its images are not read
                seen.update(map(bytes.fromhex, _keys_path(path).read_text(encoding="utf-8").splitlines()))
                names, drops = read_fields(path, Pair, "task")["task"].to_pylist(), read_shard(drops_path(path), Drop)
                progress.advance(batch.n_rows)
            counts["pairs"] += len(names)
            counts.update(f"pairs_{name}" for name in names)
            counts.update(f"dropped_{drop.reason}" for drop in drops)
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


def _keys_path(shard: Path) -> Path:
    """Path of the `duplicate_key` of each of a shard's pairs, which resuming needs; a hidden file, so it is not published."""
    return shard.with_name(f".{shard.stem}.keys")


def find_parquet_files(folder: Path, pattern: str) -> list[Path]:
    """The matching Parquet files in a folder tree, sorted. Raises FormatError if there are none, and for an absolute pattern."""
    if Path(pattern).is_absolute():
        raise FormatError(f"want a pattern relative to {folder}, got {pattern}; name the files as they are below that folder")
    files = sorted(file for file in folder.rglob(pattern) if file.suffix == ".parquet")
    if not files:
        raise FormatError(
            f"want Parquet files {pattern} below {folder}, got none; download the dataset's Parquet files, or set --files"
        )
    return files


def check_output_folder(out: Path, command: str) -> None:
    """Raise FormatError unless `out` is new, is empty, or has only what the same command published there.

    `publish` deletes the contents of `out`. So files that the command did not write are an error, as are texts and sheets that
    were edited since; Parquet files may be too large to compare. Raises FolderError if `out` cannot be written.
    """
    check_writable(out)
    summary = read_summary(out) if (out / SUMMARY_FILE).is_file() else None
    if summary is None or summary.stage != command:
        if out.exists() and (not out.is_dir() or contents(out)):
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
class _Rows:
    """The rows to import."""

    batches: Callable[[Callable[[int], bool]], Iterable[ImportBatch]]
    """Gives the batches, given which shards an earlier run has finished."""
    n_rows: int
    files: Sequence[Path]
    """Files with their content."""
    texts: str = ""
    """Hash of the content that is not in the files."""


def _convert_batch(
    batch: ImportBatch, options: ImportOptions, seen: set[bytes], advance: Callable[[int], None]
) -> tuple[dict[bytes, Pair], list[Drop]]:
    """Convert rows to pairs with tasks, by their keys, and to drops, in threads. `seen`: keys of all pairs so far; adds to it.

    advance: called with numbers of converted rows.
    """
    (instruction_column,) = (name for name, column in batch.columns.items() if column.field == "instruction")
    convert = partial(options.convert_row, columns=batch.columns)
    pairs: dict[bytes, Pair] = {}
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
            if isinstance(result, Pair):
                key = duplicate_key(result)
                if key not in seen:
                    seen.add(key)
                    pairs[key] = result
                    continue
                result = RowRejected("duplicate")
            drops.append(Drop(row[instruction_column] or "", result.reason, batch.file_name, index))
        start += len(rows)
    return dict(zip(pairs, _set_tasks(list(pairs.values()), options.assign_tasks), strict=True)), drops


def _set_tasks(pairs: list[Pair], assign_tasks: AssignTasks | None) -> list[Pair]:
    if assign_tasks is None or not pairs:
        return pairs
    names = assign_tasks([pair.instruction for pair in pairs])
    return [replace(pair, task=task) for pair, task in zip(pairs, names, strict=True)]
