"""Edit success as a text table, printed after an evaluation and a retrain. Imports nothing heavy."""

from collections.abc import Mapping


def format_success(success: Mapping[str, Mapping[str, float | None]]) -> str:
    """Edit success (system -> task -> share, None if nothing was measured): one line per task, one column per system."""
    systems = list(success)
    lines = [f"{'edit success':14}" + "".join(f"{system:>12}" for system in systems)]
    for task in dict.fromkeys(task for row in success.values() for task in row):
        cells = (success[system].get(task) for system in systems)
        lines.append(f"{task:14}" + "".join(f"{'-' if cell is None else format(cell, '.2f'):>12}" for cell in cells))
    return "\n".join(lines)
