"""Read captions in batches from a text file, a table, a dataset folder, a dataset on the hub or a Python file.

An unreadable row is returned as a `BadRow` with a reason, which the stage drops and counts; an unreadable file is an error.

Every source is a path below the project root, so that DVC can hash it. A hub dataset is described by a .yaml file that
pins its commit.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from emuedit import config
from emuedit.data import git_lfs, text_tables
from emuedit.data.text_tables import BadRow

_TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
_SHOWN_CHARS, _POINTER_BYTES = 80, 1024

CaptionFunction = Callable[[str, int, int], list[str]]
"""`captions(split, start, n)` of a Python source: captions start to start + n - 1 of a split."""


class CaptionSourceError(ValueError):
    """Raised for a source that cannot be read."""


class HubDataset(config.Params):
    """Section `captions` of a .yaml source: a dataset on the hub, which is streamed, not downloaded."""

    dataset: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """owner/name."""
    config: str | None
    """Name of the dataset configuration; null if the dataset has only one."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """Commit of the dataset, for reproducible captions."""


def read_batches(
    source: Path, reference: str, split: str, column: str, n_rows: int, size: int
) -> Iterator[tuple[int, list[str | BadRow | None]]]:
    """Yield (index of the first row, rows) in batches of at most `size` rows, `n_rows` rows in total.

    `reference`: `source` as given in `params.yaml`, used to import Python files. `split` applies to Python
    files and datasets. Raises CaptionSourceError or TableError for a source that cannot be read, and ParamsError for a
    Python file without the function `captions` or a .yaml file without valid keys.
    """
    starts = range(0, n_rows, size)
    if source.suffix == ".py":
        captions: CaptionFunction = config.import_function(reference, "captions")
        for start in starts:
            yield start, [_check_value(text) for text in captions(split, start, min(size, n_rows - start))]
        return
    texts = islice(_read_texts(source, split, column), n_rows)
    for start in starts:
        if not (batch := list(islice(texts, size))):
            return
        yield start, batch


def _read_texts(source: Path, split: str, column: str) -> Iterator[str | BadRow | None]:
    """Texts of a text file (one per line), or of one column of any other source.

    If the first readable row has no text in the column, the column is an error; later, such rows are bad rows.
    """
    if source.suffix == ".txt":
        yield from text_tables.read_lines(source)
        return
    is_first = True
    for number, row in enumerate(_read_table(source, split, column), start=1):
        if isinstance(row, BadRow):
            yield row
            continue
        if is_first and column not in row:
            got = f"{sorted(row)} in row {number}"
            raise CaptionSourceError(f"want key {column!r} in {source}, got {got}; set captions.column in params.yaml")
        if is_first and not isinstance(row[column], str | None):
            raise CaptionSourceError(
                f"want text in {column!r} of {source}, got {str(row[column])[:_SHOWN_CHARS]!r} in row {number}; "
                "set captions.column in params.yaml to a column of texts"
            )
        is_first = False
        yield _check_value(row[column]) if column in row else BadRow.of("no_column", str(row))


def _check_value(value: Any) -> str | BadRow | None:
    """A text that can be stored, None for an empty cell, or a BadRow."""
    if value is None:
        return None
    if not isinstance(value, str):
        return BadRow.of("not_text", str(value))
    return value if text_tables.is_unicode(value) else BadRow.of("not_unicode", value)


def _read_table(source: Path, split: str, column: str) -> Iterator[dict[str, Any] | BadRow]:
    """Rows as dicts. From Parquet files and datasets, only `column` is read, if it exists."""
    if source.is_dir() or source.suffix == ".yaml":
        return _read_dataset(source, split, column)
    if source.suffix == ".parquet":
        text_tables.check_file(source)
        return text_tables.read_parquet(source, column)
    if source.suffix == ".csv":
        return text_tables.read_csv(source)
    if source.suffix == ".jsonl":
        return text_tables.read_jsonl(source)
    kinds = f".txt, {', '.join(_TABLE_SUFFIXES)}, .py or .yaml, or a dataset's folder"
    raise CaptionSourceError(f"want a caption source {kinds}; got {source}")


def _read_dataset(source: Path, split: str, column: str) -> Iterator[dict[str, Any]]:
    """Stream the rows of a dataset in any format of `datasets`. One saved by `save_to_disk` is memory-mapped."""
    import datasets

    _check_pointers(source)
    # `save_to_disk` of a single Dataset writes `state.json` into the folder; of a DatasetDict, into a folder per split.
    saved = [folder for folder in (source / split, source) if (folder / "state.json").is_file()]
    if source.suffix == ".yaml":
        hub = config.load(HubDataset, "captions", source)
        arguments: dict[str, Any] = {"path": hub.dataset, "name": hub.config, "revision": hub.revision}
    else:
        arguments = {"path": str(source)}
    try:
        rows = datasets.load_from_disk(saved[0]) if saved else datasets.load_dataset(**arguments, split=split, streaming=True)
    except Exception as error:  # unknown split, configuration or dataset, no network, a damaged file: a dozen classes
        reason = f"{error}{_advice(str(error))}"
        raise CaptionSourceError(f"want the split {split!r} of the dataset {arguments['path']}, got none: {reason}") from error
    names = rows.column_names
    n_rows = 0
    try:
        for row in rows.select_columns([column]) if names and column in names else rows:
            yield row
            n_rows += 1
    except Exception as error:  # as above, and network failures
        raise CaptionSourceError(f"the dataset {arguments['path']} cannot be read after row {n_rows}: {error}") from error


def _check_pointers(source: Path) -> None:
    """Raise CaptionSourceError for a folder with Git LFS pointers instead of its files."""
    for file in sorted(source.rglob("*")) if source.is_dir() else ():
        if file.is_file() and file.stat().st_size < _POINTER_BYTES and git_lfs.is_pointer(file.read_bytes()):
            raise CaptionSourceError(f"want a dataset, got {file}, {git_lfs.DESCRIPTION}")


def _advice(message: str) -> str:
    """Advice for an error of `datasets` that lists the choices."""
    if "split" in message and "vailable" in message:
        return "; name one of them in captions.split"
    if "available configs" in message:
        return "; name the files of one of them in captions, or its dataset in a .yaml file with `config`"
    return ""
