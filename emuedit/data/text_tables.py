"""Read user-provided text tables (.txt, .csv, .jsonl, .parquet): bad rows are skipped, bad files are errors.

Supports UTF-8 with or without a byte-order mark, and UTF-16 with one. An unreadable row is returned as a `BadRow` with a
reason, so that a stage drops and counts it. An unreadable file raises TableError with advice.
"""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emuedit.data import git_lfs

MAX_FIELD_CHARS = 131_072
"""Maximum field length; longer fields are probably errors, such as an unclosed quotation mark. Python's default."""
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_PROBE_BYTES = 4096
_ESCAPED = "surrogateescape"  # invalid UTF-8 bytes become surrogate code points
_SHOWN_CHARS = 200


class TableError(ValueError):
    """Raised for a file that cannot be read as a table."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read."""

    reason: str
    """not_utf8, not_json, not_an_object, ragged_row, unclosed_quote, field_too_long, not_unicode, ..."""
    text: str
    """Its beginning; invalid characters are replaced by question marks."""

    @classmethod
    def of(cls, reason: str, text: str) -> "BadRow":
        """A bad row with a text that can be stored."""
        return cls(reason, text[:_SHOWN_CHARS].encode("utf-8", "replace").decode())


def check_file(path: Path) -> None:
    """Raise TableError for an empty file and for a Git LFS pointer."""
    try:
        size, head = path.stat().st_size, _head(path)
    except OSError as error:
        raise TableError(f"want a table, got {path}, which cannot be read: {error.strerror}") from error
    if not size:
        raise TableError(f"want a table, got {path}, which is empty; was its download interrupted?")
    if git_lfs.is_pointer(head):
        raise TableError(f"want a table, got {path}, {git_lfs.DESCRIPTION}")


def read_lines(path: Path) -> Iterator[str | BadRow]:
    """Lines of a text file, without their ends."""
    with _open_text(path) as lines:
        yield from (_check_text(line.rstrip("\r\n")) for line in lines)


def read_csv(path: Path) -> Iterator[dict[str, Any] | BadRow]:
    """Rows of a CSV file with a header line. Raises TableError for a header with a name twice.

    A quotation mark that is not closed up to the end of the file gives one bad row, which names its lines. Before the limit of a
    field's length is reached, `csv` takes all of them as one field.
    """
    with _open_text(path, newline="") as stream:
        lines = _Lines(stream)
        rows = csv.reader(lines)
        try:
            header = next(rows)
        except (StopIteration, csv.Error) as error:
            raise TableError(f"want a header line in {path}, got none that can be read: {error}") from error
        if lines.have_ended():
            raise TableError(f"want a header line in {path}, got a quotation mark that is not closed in line 1; close it")
        if len(set(header)) < len(header):
            raise TableError(f"want different names of columns in {path}, got {header}")
        while True:
            first = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:  # the only remaining cause: a field that is too long
                yield BadRow.of("field_too_long", _name_lines(first, rows.line_num))
                continue
            if not row:  # an empty line, which csv.DictReader skips as well
                continue
            text = ",".join(row)
            if lines.have_ended():  # a complete row is returned before the end of the file is seen
                yield BadRow.of("unclosed_quote", f"{_name_lines(first, rows.line_num)}: {text}")
                continue
            if len(row) != len(header):
                yield BadRow.of("ragged_row", text if first == rows.line_num else f"{_name_lines(first, rows.line_num)}: {text}")
                continue
            reason = next(filter(None, map(_fault_of, row)), None)
            yield BadRow.of(reason, text) if reason else dict(zip(header, row, strict=True))


def read_jsonl(path: Path, columns: Sequence[str] = ()) -> Iterator[dict[str, Any] | BadRow]:
    """Rows of a file with a JSON object in each line. Raises TableError for a JSON document that spans several lines.

    `columns`: the keys that are used, whose texts are limited to `MAX_FIELD_CHARS`; others, such as images in base64, are not.
    """
    with _open_text(path) as lines:
        for number, line in enumerate(filter(str.strip, lines), start=1):
            row = _parse_json(line.strip(), columns)
            if number == 1 and (line.strip() in ("[", "{") or line.lstrip().startswith("[{")):
                raise TableError(f"want one JSON object in each line of {path}, got one document; `jq -c '.[]'` converts a list")
            yield row


def read_parquet(path: Path, columns: Sequence[str], batch_size: int = 65_536) -> Iterator[dict[str, Any] | BadRow]:
    """Rows of a Parquet file, of which at most `batch_size` are in memory; only `columns` are read.

    Raises TableError for a damaged file. A missing column must be noticed before (`parquet_shape`); its rows lack the key.
    """
    n_rows = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size, columns=list(columns)):
                yield from to_rows(batch)
                n_rows += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, f"after row {n_rows}" if n_rows else "or not a Parquet file", error) from error


def parquet_shape(path: Path) -> tuple[list[str], int]:
    """(names of the columns, number of rows) of a Parquet file, from its footer. Raises TableError for a damaged file."""
    check_file(path)
    try:
        with pq.ParquetFile(path) as file:
            return list(file.schema_arrow.names), file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, "or not a Parquet file", error) from error


def to_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadRow]:
    """Rows of a batch as dicts; invalid UTF-8 gives one bad row, not a bad batch."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                yield from batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield BadRow("not_utf8", error.object[:_SHOWN_CHARS].decode("utf-8", "replace"))
        return
    yield from rows


def normal_name(column: str) -> str:
    """A column's name in lower case, without outer spaces and with `_` for inner ones: `input_caption` for " Input Caption"."""
    return "_".join(column.lower().split())


def similar_name(column: str, columns: Iterable[str]) -> str | None:
    """The only one of these columns whose name differs from `column` in no more than case and spaces, or None."""
    names = [name for name in columns if normal_name(name) == normal_name(column)]
    return names[0] if len(names) == 1 else None


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON may contain lone surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open_text(path: Path, newline: str | None = None) -> Any:
    check_file(path)
    head = _head(path)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in head:
        raise TableError(f"want text in UTF-8, got {path}, which is not; `iconv -f utf-16 -t utf-8` may convert it")
    return path.open(encoding=encoding, errors=_ESCAPED if encoding != "utf-16" else "replace", newline=newline)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_PROBE_BYTES)


class _Lines:
    """Iterates over lines, and says whether their end was reached."""

    def __init__(self, stream: Iterator[str]) -> None:
        self._stream, self._ended = stream, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._stream)
        except StopIteration:
            self._ended = True
            raise

    def have_ended(self) -> bool:
        return self._ended


def _name_lines(first: int, last: int) -> str:
    return f"line {first}" if first == last else f"lines {first} to {last}"


def _check_text(text: str) -> str | BadRow:
    reason = _fault_of(text)
    return BadRow.of(reason, text) if reason else text


def _fault_of(text: str) -> str | None:
    """The reason of a bad row for a field; None: there is none."""
    if len(text) > MAX_FIELD_CHARS:
        return "field_too_long"
    return None if is_unicode(text) else "not_utf8"


def _parse_json(line: str, columns: Sequence[str]) -> dict[str, Any] | BadRow:
    if not is_unicode(line):
        return BadRow.of("not_utf8", line)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return BadRow.of("not_json", line)
    if not isinstance(row, dict):
        return BadRow.of("not_an_object", line)
    texts = (row[name] for name in columns if isinstance(row.get(name), str))
    return BadRow.of("field_too_long", line) if any(len(text) > MAX_FIELD_CHARS for text in texts) else row


def _damaged(path: Path, where: str, error: Exception) -> TableError:
    return TableError(f"want a Parquet file, got {path}, which is damaged {where}: {_first_line(error)}; download it again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
