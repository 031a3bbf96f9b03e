"""Files of a benchmark of real images, and advice for missing ones. Imports nothing heavy."""

from pathlib import Path

TABLE, JUDGE = "edits.csv", "judge.yaml"
HELD_OUT = "held_out"
"""The split of rows that name none."""
REQUIRED = ("image", "task", "instruction", "input_caption", "output_caption")
"""Columns of the table."""


def missing_files(folder: Path) -> dict[str, str]:
    """Missing file -> advice."""
    command = f"`emuedit benchmark {folder}` writes it"
    advice = {
        TABLE: f"want a table of edits at {folder / TABLE} with the columns {', '.join(REQUIRED)}, got no file",
        JUDGE: f"want the judge's settings in {folder / JUDGE}, got no file; {command}",
    }
    return {name: line for name, line in advice.items() if not (folder / name).is_file()}
