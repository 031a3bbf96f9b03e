"""Shards: Parquet files with records of one class, readable by pandas, DuckDB and Hugging Face `datasets`.

PNG fields are structs {bytes, path}, which `datasets` reads as `Image`. Scores are columns `score_<name>`, so that
filters are column queries. Equal records give equal bytes. Files are written atomically.
"""

import json
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from emuedit.data.atomic_file import replacing
from emuedit.data.records import Record, stored_name

R = TypeVar("R", bound=Record)

_KIND_KEY = b"emuedit.record"
SCORE_PREFIX = "score_"
"""Prefix of the columns with scores."""
_PICTURE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), tuple: pa.list_(pa.string())}


class ShardError(ValueError):
    """Raised for a file that is not a complete shard of the given class, and for records that do not fit in a shard."""


def write_shard(path: str | Path, records: Sequence[R], kind: type[R] | None = None) -> None:
    """Write records of one class. `kind` (their class) is needed only for an empty sequence.

    Raises ShardError when classes or score names differ.
    """
    path = Path(path)
    kind = kind or (type(records[0]) if records else None)
    if kind is None:
        raise ShardError(f"want records or their kind, got neither for {path}; pass kind=Caption or another")
    for record in records:
        if type(record) is not kind:
            got = f"{kind.__name__} and {type(record).__name__}"
            raise ShardError(f"want one kind of record in {path}, got {got}; write two shards")
    columns: dict[str, pa.Array] = {"id": pa.array([record.id for record in records], pa.string())}
    picture_features: dict[str, dict[str, str]] = {}
    for record_field in fields(kind):
        name, form = stored_name(record_field), record_field.metadata.get("form", "plain")
        values = [getattr(record, record_field.name) for record in records]
        if form == "scores":
            columns |= _score_columns(values, path)
        elif form == "png":
            columns[name] = pa.array([png and {"bytes": png, "path": None} for png in values], _PICTURE_TYPE)
            picture_features[name] = {"_type": "Image"}
        elif form == "json":
            columns[name] = pa.array([json.dumps(value, sort_keys=True) for value in values], pa.string())
        else:
            columns[name] = pa.array(values, _arrow_type(kind, record_field))
    features = json.dumps({"info": {"features": picture_features}}).encode()
    table = pa.table(columns).replace_schema_metadata({_KIND_KEY: kind.__name__.encode(), b"huggingface": features})
    # Statistics would store complete PNGs in the footer, as minimum and maximum.
    columns_with_statistics = [name for name in columns if name not in picture_features]
    with replacing(path, os.getpid()) as partial:
        pq.write_table(table, partial, compression="zstd", write_statistics=columns_with_statistics, write_page_checksum=True)


def read_shard(path: str | Path, kind: type[R], verify: bool = False) -> list[R]:
    """Read the records of a shard, in order. `verify`: compare every id with the content, which decodes the images.

    A field with a default may be missing in a shard of an earlier version. Raises ShardError, naming the file, if it is missing,
    damaged, incomplete, of another class, or has a wrong id; MemoryError and errors of the system, such as PermissionError, as
    they are.
    """
    path = Path(path)
    table = _read_table(path, kind)
    stored_kind = (table.schema.metadata or {}).get(_KIND_KEY, b"an unknown kind").decode()
    if stored_kind != kind.__name__:
        raise ShardError(f"want records of {kind.__name__} in {path}, got {stored_kind}")
    optional = {stored_name(record_field) for record_field in fields(kind) if record_field.default is not MISSING}
    required = {stored_name(record_field) for record_field in fields(kind)} - {"scores"} - optional
    if missing := required - set(table.column_names):
        raise ShardError(f"want columns {sorted(required)} in {path}, {sorted(missing)} are missing; run its stage again")
    score_columns = [name for name in table.column_names if name.startswith(SCORE_PREFIX)]
    stored_fields = [field for field in fields(kind) if stored_name(field) not in optional - set(table.column_names)]
    records = []
    for row in table.to_pylist():
        record = kind(**{field.name: _field_value(field, row, score_columns) for field in stored_fields})
        if verify and record.id != row["id"]:
            raise ShardError(f"{path}: record {row['id']} has the content of {record.id}; run its stage again")
        record.__dict__["id"] = row["id"]  # fills the cached property
        records.append(record)
    return records


def read_fields(path: Path, kind: type[Record], *names: str, with_scores: bool = False) -> pa.Table:
    """These columns of a shard, and with `with_scores` all scores, without reading the others.

    Raises ShardError if the file is missing or damaged.
    """
    return _read_table(path, kind, names, with_scores)


def _read_table(path: Path, kind: type[Record], names: Sequence[str] | None = None, with_scores: bool = False) -> pa.Table:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        scores = [name for name in file.schema_arrow.names if name.startswith(SCORE_PREFIX)] if with_scores else []
        return file.read(columns=None if names is None else [*names, *scores])
    except FileNotFoundError as error:
        raise ShardError(f"want a shard of {kind.__name__}, got no file at {path}; run the stage that writes it") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # out of memory, no permission, or a failing disk: the file may be complete
        raise ShardError(f"{path} is damaged or truncated ({error}); delete it and run its stage again") from error


def _score_columns(scores: list[dict[str, float | None]], path: Path) -> dict[str, pa.Array]:
    names = sorted(scores[0]) if scores else []
    for record_scores in scores:
        if sorted(record_scores) != names:
            got = f"{names} and {sorted(record_scores)}"
            raise ShardError(f"want the same score names in all records of {path}, got {got}; None stands for undefined")
    return {SCORE_PREFIX + name: pa.array([row[name] for row in scores], pa.float64()) for name in names}


def _arrow_type(kind: type[Record], record_field: "Field[Any]") -> pa.DataType:
    hint = typing.get_type_hints(kind)[record_field.name]
    if isinstance(hint, types.UnionType):
        (hint,) = (member for member in typing.get_args(hint) if member is not type(None))
    return _ARROW_TYPES[typing.get_origin(hint) or hint]


def _field_value(record_field: "Field[Any]", row: dict[str, Any], score_columns: list[str]) -> Any:
    form = record_field.metadata.get("form", "plain")
    if form == "scores":
        return {name.removeprefix(SCORE_PREFIX): row[name] for name in score_columns}
    value = row[stored_name(record_field)]
    if form == "png":
        return value and value["bytes"]
    if form == "json":
        return json.loads(value)
    return tuple(value) if isinstance(value, list) else value
