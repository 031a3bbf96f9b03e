"""Files of a benchmark of real pictures, and what to do where one is missing; imports nothing heavy."""

from pathlib import Path

TABLE, JUDGE = "edits.csv", "judge.yaml"
REQUIRED = ("image", "task", "instruction", "input_caption", "output_caption")
"""Columns of the table."""


def missing_files(folder: Path) -> list[str]:
    """What is wrong with a folder that lacks files of a benchmark; empty if it has them."""
    lines = []
    if not (folder / TABLE).is_file():
        lines.append(f"want a table of edits at {folder / TABLE} with the columns {', '.join(REQUIRED)}, got no file")
    if not (folder / JUDGE).is_file():
        command = f"`emuedit benchmark {folder} --clip ... --dino ...` writes it"
        lines.append(f"want the judge's settings in {folder / JUDGE}, got no file; {command}")
    return lines
