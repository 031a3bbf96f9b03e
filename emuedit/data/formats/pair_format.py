"""What a layout is: which column of a public pair dataset holds what. Each has a file of its own beside this one."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from emuedit.data.formats import NAMES

NOTE, SCORE, UNUSED = "note", "score", "unused"
Kind = Literal["image", "text", "texts", "int", "plain", "number", "json"]


class FormatError(ValueError):
    """Raised for data that is not in the layout it is said to be in."""


@dataclass(frozen=True)
class Column:
    """One column: how it is stored ("plain": text or int), and the field of Pair it becomes."""

    kind: Kind
    field: str
    """A field of Pair; NOTE: kept in the recipe; SCORE: a score by the column's own name; UNUSED: not read."""
    optional: bool = False
    """Some versions of the dataset come without it."""


@dataclass(frozen=True)
class PairFormat:
    """A dataset as its makers publish it: Parquet files whose pictures are structs {bytes, path}."""

    name: str
    source: str
    """The dataset, by its name on the hub."""
    licence: str
    columns: Mapping[str, Column]
    family: str | None
    """Column that is equal for pairs that share a picture and must be held out together; None: pairs bring their parents."""
    scores: str | None = None
    """What the names of further columns with scores begin with, if there are any."""

    @property
    def fields(self) -> set[str]:
        """The fields of Pair that this layout fills."""
        return {column.field for column in self.columns.values()}

    def read_as(self, schema: pa.Schema, where: str) -> dict[str, Column]:
        """The columns of a file, by name. Raises FormatError for unknown, missing and wrongly stored ones."""
        found = {name: self._column(name) for name in schema.names}
        known = {name: column for name, column in found.items() if column is not None}
        lost = sorted(name for name, column in self.columns.items() if not column.optional and name not in known)
        wrong = [
            f"{name}: {schema.field(name).type}" for name, one in known.items() if not _is(one.kind, schema.field(name).type)
        ]
        if lost or len(known) < len(found) or wrong:
            odd = {"missing": lost, "unknown": sorted(set(found) - set(known)), "stored otherwise": wrong}
            told = "; ".join(f"{what} {names}" for what, names in odd.items() if names)
            raise FormatError(
                f"want the columns of {self.name}, {', '.join(f'{name} ({one.kind})' for name, one in self.columns.items())}, "
                f"in {where}; got {told}; name another layout ({', '.join(NAMES)}), or rename and drop columns first"
            )
        return known

    def _column(self, name: str) -> Column | None:
        return self.columns.get(name) or (Column("number", SCORE) if self.scores and name.startswith(self.scores) else None)


def known(name: str) -> PairFormat:
    """The layout called `name`."""
    if name not in NAMES:
        raise FormatError(f"want a layout out of {', '.join(NAMES)}; got {name!r}")
    found = importlib.import_module(f"emuedit.data.formats.{name}").FORMAT
    assert isinstance(found, PairFormat)
    return found


def _is(kind: Kind, stored: pa.DataType) -> bool:
    text = pa.types.is_string(stored) or pa.types.is_large_string(stored)
    if kind == "image":
        return pa.types.is_struct(stored) and {stored.field(i).name for i in range(stored.num_fields)} >= {"bytes", "path"}
    if kind == "texts":
        return bool(pa.types.is_list(stored))
    if kind == "number":
        return bool(pa.types.is_floating(stored))
    whole = bool(pa.types.is_integer(stored))
    return whole if kind == "int" else text or (kind == "plain" and whole)
