"""Definition of a dataset format: what each column of a published pair dataset contains."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from emuedit.data.formats import FORMAT_MODULES, FORMAT_NAMES

NOTE, SCORE, IGNORED = "note", "score", "ignored"
Kind = Literal["image", "text", "texts", "int", "plain", "number", "json"]


class FormatError(ValueError):
    """Raised for data that does not have the named format."""


@dataclass(frozen=True)
class Column:
    """One column: how it is stored ("plain": text or int), and the field of Pair that it fills."""

    kind: Kind
    field: str
    """A field of Pair; NOTE: stored in the recipe; SCORE: a score with the name of the column; IGNORED: not read."""
    optional: bool = False
    """Some versions of the dataset do not have this column."""


@dataclass(frozen=True)
class PairFormat:
    """A dataset: Parquet files whose images are structs {bytes, path}; `pair_folder` reads image files as such rows."""

    name: str
    source: str
    """Name of the dataset on the Hugging Face hub."""
    licence: str
    columns: Mapping[str, Column]
    family: str | None
    """Column with equal values for pairs that share an image and must be held out together.

    None: the dataset states the parents of each pair.
    """
    scores: str | None = None
    """Prefix of score columns; None: there are none."""
    files: str = "*.parquet"
    """Glob of the files to import, unless others are named: those of the training split."""

    @property
    def fields(self) -> set[str]:
        """The fields of Pair that this format fills."""
        return {column.field for column in self.columns.values()}

    def match_columns(self, schema: pa.Schema, where: str) -> dict[str, Column]:
        """Column definitions of a file, by name. `where` names the file in errors.

        Raises FormatError for unknown or missing columns and for wrong types.
        """
        matches = {name: self._find_column(name) for name in schema.names}
        columns = {name: column for name, column in matches.items() if column is not None}
        missing = sorted(name for name, column in self.columns.items() if not column.optional and name not in columns)
        wrong_type = [
            f"{name}: {schema.field(name).type}"
            for name, column in columns.items()
            if not _is_stored_as(column.kind, schema.field(name).type)
        ]
        if missing or len(columns) < len(matches) or wrong_type:
            problems = {"missing": missing, "unknown": sorted(set(matches) - set(columns)), "of another type": wrong_type}
            got = "; ".join(f"{problem} {names}" for problem, names in problems.items() if names)
            expected = ", ".join(f"{name} ({column.kind})" for name, column in self.columns.items())
            raise FormatError(
                f"want the columns of {self.name}, {expected}, in {where}; got {got}; "
                f"name another format ({', '.join(FORMAT_NAMES)}), or rename and drop columns first"
            )
        return columns

    def _find_column(self, name: str) -> Column | None:
        return self.columns.get(name) or (Column("number", SCORE) if self.scores and name.startswith(self.scores) else None)


def get_format(name: str) -> PairFormat:
    """The format with this name. Raises FormatError for an unknown one."""
    if name not in FORMAT_MODULES:
        raise FormatError(f"want one of the formats {', '.join(FORMAT_NAMES)}; got {name!r}")
    pair_format = importlib.import_module(f"emuedit.data.formats.{FORMAT_MODULES[name]}").FORMAT
    assert isinstance(pair_format, PairFormat)
    return pair_format


def _is_stored_as(kind: Kind, stored: pa.DataType) -> bool:
    is_text = pa.types.is_string(stored) or pa.types.is_large_string(stored)
    if kind == "image":
        return pa.types.is_struct(stored) and {stored.field(i).name for i in range(stored.num_fields)} >= {"bytes", "path"}
    if kind == "texts":
        return bool(pa.types.is_list(stored))
    if kind == "number":
        return bool(pa.types.is_floating(stored))
    is_integer = bool(pa.types.is_integer(stored))
    return is_integer if kind == "int" else is_text or (kind == "plain" and is_integer)
