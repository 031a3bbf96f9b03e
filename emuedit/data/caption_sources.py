"""Read captions in batches from a text file, a table, a dataset folder, a dataset on the hub or a Python file.

An unreadable row is returned as a `BadRow` with a reason, which the stage drops and counts; an unreadable file is an error. A row
of a table or dataset may also name an image, or contain it.

Every source is a path below the project root, so that DVC can hash it. A hub dataset is described by a .yaml file that
pins its commit.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from emuedit import config
from emuedit.data import git_lfs, text_tables
from emuedit.data.caption_images import CaptionImages
from emuedit.data.text_tables import BadRow

_TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
LIST_SUFFIXES = (".txt", *_TABLE_SUFFIXES)
"""Suffixes of files with one caption per row."""
SUFFIXES = (*LIST_SUFFIXES, ".yaml", ".py")
"""Suffixes of all caption files; a dataset may also be a folder."""
_SHOWN_CHARS, _POINTER_BYTES = 80, 1024
_COLUMN_ADVICE = "set captions.column in params.yaml to a column of texts, or --column of `emuedit init`"
_ROWS_WITH_IMAGES = 16  # read at a time

CaptionFunction = Callable[[str, int, int], list[str]]
"""`captions(split, start, n)` of a Python source: captions start to start + n - 1 of a split."""


@dataclass(frozen=True)
class CaptionedImage:
    """A row with an image."""

    text: str
    file: Path


CaptionRow = str | CaptionedImage | BadRow | None


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
    source: Path, reference: str, split: str, column: str, n_rows: int, size: int, images: CaptionImages | None = None
) -> Iterator[tuple[int, list[CaptionRow]]]:
    """Yield (index of the first row, rows) in batches of at most `size` rows, `n_rows` rows in total.

    `reference`: `source` as given in `params.yaml`, used to import Python files. `split` applies to Python files and datasets.
    `images`: where the rows have images too. Raises CaptionSourceError or TableError for a source that cannot be read, and
    ParamsError for a Python file without the function `captions` or a .yaml file without valid keys.
    """
    if images is not None and source.suffix in (".py", ".txt"):
        raise CaptionSourceError(
            f"want a table or a dataset with the column {images.column!r} of captions.image_column, got {source}; set "
            "captions.image_column to null, or write a table"
        )
    starts = range(0, n_rows, size)
    if source.suffix == ".py":
        captions: CaptionFunction = config.import_function(reference, "captions")
        for start in starts:
            yield start, [_check_value(text) for text in captions(split, start, min(size, n_rows - start))]
        return
    texts = islice(_read_texts(source, split, column, images), n_rows)
    for start in starts:
        if not (batch := list(islice(texts, size))):
            return
        yield start, batch


def check_kind(source: Path) -> None:
    """Raise CaptionSourceError for a file whose suffix is not one of SUFFIXES."""
    if not source.is_dir() and source.suffix not in SUFFIXES:
        raise CaptionSourceError(f"want a caption source {', '.join(SUFFIXES)}, or a dataset's folder; got {source}")


def count_rows(source: Path, n_rows: int) -> int | None:
    """Number of rows that `read_batches` gives, at most `n_rows`; None for a dataset, whose rows are not counted.

    At most `n_rows` rows are read; of a Parquet file, only the footer. Raises TableError for a file that cannot be read.
    """
    if source.suffix == ".py":
        return n_rows
    if source.is_dir() or source.suffix not in LIST_SUFFIXES:
        return None
    if source.suffix == ".parquet":
        return min(n_rows, text_tables.parquet_shape(source)[1])
    read = {".txt": text_tables.read_lines, ".csv": text_tables.read_csv, ".jsonl": text_tables.read_jsonl}[source.suffix]
    return sum(1 for _ in islice(read(source), n_rows))


def _read_texts(source: Path, split: str, column: str, images: CaptionImages | None) -> Iterator[CaptionRow]:
    """Texts of a text file (one per line), or of one column of any other source.

    If the first readable row has no text in the column, the column is an error; later, such rows are bad rows.
    """
    if source.suffix == ".txt":
        yield from text_tables.read_lines(source)
        return
    is_first = True
    image_column = None if images is None else images.column
    for number, row in enumerate(_read_table(source, split, column, image_column), start=1):
        if isinstance(row, BadRow):
            yield row
            continue
        if is_first and column not in row:
            got = f"{sorted(row)} in row {number}"
            raise CaptionSourceError(f"want key {column!r} in {source}, got {got}; {_column_advice(column, row)}")
        if is_first and not isinstance(row[column], str | None):
            raise CaptionSourceError(
                f"want text in {column!r} of {source}, got {str(row[column])[:_SHOWN_CHARS]!r} in row {number}; {_COLUMN_ADVICE}"
            )
        if is_first and image_column is not None and image_column not in row:
            got = f"{sorted(row)} in row {number}"
            advice = _column_advice(image_column, row, "set captions.image_column")
            raise CaptionSourceError(f"want key {image_column!r} in {source}, got {got}; {advice}")
        is_first = False
        text = _check_value(row[column]) if column in row else BadRow.of("no_column", str(row))
        if images is None or not isinstance(text, str):
            yield text
        else:
            file = images.file_of(row.get(images.column), text)
            yield file if isinstance(file, BadRow) else CaptionedImage(text, file)


def _column_advice(column: str, columns: Iterable[str], advice: str = _COLUMN_ADVICE) -> str:
    """Advice for a missing column, which names one that differs in case and spaces only."""
    name = text_tables.similar_name(column, columns)
    return f"{advice}; did you mean {name!r}?" if name else advice


def _check_value(value: Any) -> str | BadRow | None:
    """A text that can be stored, None for an empty cell, or a BadRow."""
    if value is None:
        return None
    if not isinstance(value, str):
        return BadRow.of("not_text", str(value))
    return value if text_tables.is_unicode(value) else BadRow.of("not_unicode", value)


def _read_table(source: Path, split: str, column: str, image_column: str | None) -> Iterator[dict[str, Any] | BadRow]:
    """Rows as dicts. From Parquet files and datasets, only these columns are read, if they exist."""
    check_kind(source)
    columns = [column] if image_column is None else [column, image_column]
    if source.is_dir() or source.suffix == ".yaml":
        return _read_dataset(source, split, columns)
    if source.suffix == ".parquet":
        names, _ = text_tables.parquet_shape(source)
        for name, advice in ((column, _COLUMN_ADVICE), (image_column, "set captions.image_column in params.yaml")):
            if name is not None and name not in names:  # before any image is read
                raise CaptionSourceError(
                    f"want key {name!r} in {source}, got {sorted(names)}; {_column_advice(name, names, advice)}"
                )
        if image_column is not None:
            return text_tables.read_parquet(source, columns, _ROWS_WITH_IMAGES)
        return text_tables.read_parquet(source, columns)
    if source.suffix == ".csv":
        return text_tables.read_csv(source)
    return text_tables.read_jsonl(source, columns)


def _read_dataset(source: Path, split: str, columns: list[str]) -> Iterator[dict[str, Any]]:
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
    if set(columns) <= set(rows.column_names or ()):
        rows = rows.select_columns(columns)
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    n_rows = 0
    try:
        for row in rows:
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
