"""Read a table of edits of images, `edits.csv`. A row that cannot be read, or has too few or too many cells, is an error.

Names of columns may differ in case and spaces: `Input Caption` is read as `input_caption`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from emuedit.data import text_tables
from emuedit.data.text_tables import BadRow, TableError

_SHOWN = 5
_ADVICE = {
    "unclosed_quote": 'want a quotation mark that is closed, got none up to the end of the file: {text!r}; close it, or write ""',
    "ragged_row": "want as many cells as the header has, got {text!r}; put texts with commas in double quotes",
    "not_utf8": "want UTF-8, got {text!r}; save the table as CSV in UTF-8",
}


def read_edit_table(file: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table, with the names of `text_tables.normal_name` and without spaces around the values.

    The first row is in line 2 unless values span lines. Raises TableError, which names file, line and column, for an empty table,
    missing columns, two columns with the same normal name, and unreadable rows.
    """
    rows = list(text_tables.read_csv(file))
    columns: list[str] = next((list(row) for row in rows if isinstance(row, dict)), [])
    names = {column: text_tables.normal_name(column) for column in columns}
    missing = [name for name in required if name not in names.values()]
    if columns and missing:
        advice = "separate the columns by commas" if any(mark in columns[0] for mark in ";\t") else "add or rename columns"
        raise TableError(
            f"{file}: want the columns {', '.join(required)}, got none called {', '.join(missing)} among {', '.join(columns)}; "
            f"{advice}"
        )
    if len(set(names.values())) < len(names):
        raise TableError(f"{file}: want names of columns that differ in more than case and spaces, got {', '.join(columns)}")
    problems = [f"line {line}: {_problem(row)}" for line, row in enumerate(rows, start=2) if isinstance(row, BadRow)]
    if problems or not rows:
        raise TableError(f"{file}: {join_problems(problems) or 'want rows, got none'}")
    return [{names[column]: str(value).strip() for column, value in row.items()} for row in rows if isinstance(row, dict)]


def find_image_problem(folder: Path, column: str, name: str) -> str:
    """The problem of a file that a row names, or an empty string: it is missing, or its path leads out of the folder.

    Images of tables are published with them, and whoever wrote the table may not own what lies beside the folder. Links in the
    folder are followed, such as those of DVC's `cache.type symlink`.
    """
    absolute = os.path.normpath(folder.absolute())
    file = Path(os.path.normpath(Path(absolute, name)))
    if file.is_relative_to(absolute) and file.is_file():
        return ""
    return f"want an image in {folder} as {column}, got {name!r}"


def join_problems(problems: Sequence[str]) -> str:
    """The first problems in one line, and the number of the others."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def _problem(row: BadRow) -> str:
    return _ADVICE.get(row.reason, "{reason}: {text!r}; is a quotation mark not closed?").format(reason=row.reason, text=row.text)
