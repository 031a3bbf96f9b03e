"""One Parquet file of records of one kind. Pandas, DuckDB and Hugging Face `datasets` read it without this module.

PNG fields are structs {bytes, path} marked as `Image` for `datasets`; scores lie flat as columns `score_<name>`, so that
filtering is a query. The same records give the same bytes. Files appear whole or not at all.
"""

import json
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from emuedit.data.records import Record

R = TypeVar("R", bound=Record)

_KIND = b"emuedit.record"
_SCORE = "score_"
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), tuple: pa.list_(pa.string())}


class ShardError(ValueError):
    """Raised for a file that is no whole shard of the wanted kind, and for records that do not fit in one."""


def write_shard(path: str | Path, records: Sequence[R], kind: type[R] | None = None) -> None:
    """Write records of one kind; `kind` is needed only when there are none. ShardError when kinds or score names differ."""
    path = Path(path)
    kind = kind or (type(records[0]) if records else None)
    if kind is None:
        raise ShardError(f"want records or their kind, got neither for {path}; pass kind=Caption or another")
    for record in records:
        if type(record) is not kind:
            got = f"{kind.__name__} and {type(record).__name__}"
            raise ShardError(f"want one kind of record in {path}, got {got}; write two shards")
    columns: dict[str, pa.Array] = {"id": pa.array([record.id for record in records], pa.string())}
    pictures: dict[str, dict[str, str]] = {}
    for one in fields(kind):
        values = [getattr(record, one.name) for record in records]
        form = one.metadata.get("form", "plain")
        if form == "scores":
            columns |= _scores(values, path)
        elif form == "png":
            columns[one.name] = pa.array([png and {"bytes": png, "path": None} for png in values], _PICTURE)
            pictures[one.name] = {"_type": "Image"}
        elif form == "json":
            columns[one.name] = pa.array([json.dumps(value, sort_keys=True) for value in values], pa.string())
        else:
            columns[one.name] = pa.array(values, _arrow_type(kind, one))
    meta = {_KIND: kind.__name__.encode(), b"huggingface": json.dumps({"info": {"features": pictures}}).encode()}
    table = pa.table(columns).replace_schema_metadata(meta)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # statistics of whole PNGs would only swell the footer
        plain = [name for name in columns if name not in pictures]
        pq.write_table(table, partial, compression="zstd", write_statistics=plain, write_page_checksum=True)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_shard(path: str | Path, kind: type[R], verify: bool = False) -> list[R]:
    """Records of a shard, in order. `verify` computes every id anew (it decodes the pictures) and compares.

    Raises ShardError, which names the file, when it is absent, damaged, cut short, of another kind or has a wrong id.
    """
    path = Path(path)
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except FileNotFoundError as error:
        raise ShardError(f"want a shard of {kind.__name__}, got no file at {path}; run the station that writes it") from error
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{path} is damaged or cut short ({error}); delete it and run its station again") from error
    found = (table.schema.metadata or {}).get(_KIND, b"an unknown kind").decode()
    if found != kind.__name__:
        raise ShardError(f"want records of {kind.__name__} in {path}, got {found}")
    scored = [name for name in table.column_names if name.startswith(_SCORE)]
    wanted = {one.name for one in fields(kind)} - {"scores"}
    if lost := wanted - set(table.column_names):
        raise ShardError(f"want columns {sorted(wanted)} in {path}, lost {sorted(lost)}; run its station again")
    records = []
    for row in table.to_pylist():
        values = {one.name: _value(one, row, scored) for one in fields(kind)}
        record = kind(**values)
        if verify and record.id != row["id"]:
            raise ShardError(f"{path}: record {row['id']} has the content of {record.id}; run its station again")
        record.__dict__["id"] = row["id"]
        records.append(record)
    return records


def _scores(values: list[dict[str, float | None]], path: Path) -> dict[str, pa.Array]:
    names = sorted(values[0]) if values else []
    for value in values:
        if sorted(value) != names:
            got = f"{names} and {sorted(value)}"
            raise ShardError(f"want the same score names in all records of {path}, got {got}; None stands for undefined")
    return {_SCORE + name: pa.array([value[name] for value in values], pa.float64()) for name in names}


def _arrow_type(kind: type[Record], one: "Field[Any]") -> pa.DataType:
    hint = typing.get_type_hints(kind)[one.name]
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return _PLAIN[typing.get_origin(hint) or hint]


def _value(one: "Field[Any]", row: dict[str, Any], scored: list[str]) -> Any:
    form = one.metadata.get("form", "plain")
    if form == "scores":
        return {name.removeprefix(_SCORE): row[name] for name in scored}
    value = row[one.name]
    if form == "png":
        return value and value["bytes"]
    if form == "json":
        return json.loads(value)
    return tuple(value) if isinstance(value, list) else value
