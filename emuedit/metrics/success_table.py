"""Edit success as a text table, printed after an evaluation and a retrain. Imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

Success = Mapping[str, Mapping[str, float | None]]
"""System -> task -> share of successful edits; None if nothing was measured."""
SUCCESS = "edit_success"


def success_with_slices(tables: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The table `edit_success` of an evaluation; each slice (`edit_success_<name>`) adds a row with its `overall`."""
    slices = {name.removeprefix(f"{SUCCESS}_"): table for name, table in tables.items() if name.startswith(f"{SUCCESS}_")}
    return {
        system: {**row, **{name: table.get(system, {}).get("overall") for name, table in slices.items()}}
        for system, row in tables.get(SUCCESS, {}).items()
    }


def format_success(success: Success) -> str:
    """Edit success: one line per task or slice, one column per system."""
    systems = list(success)
    width = max(13, *(len(name) for row in success.values() for name in row)) + 1
    lines = [f"{'edit success':{width}}" + "".join(f"{system:>12}" for system in systems)]
    for task in dict.fromkeys(task for row in success.values() for task in row):
        cells = (success[system].get(task) for system in systems)
        lines.append(f"{task:{width}}" + "".join(f"{'-' if cell is None else format(cell, '.2f'):>12}" for cell in cells))
    return "\n".join(lines)
