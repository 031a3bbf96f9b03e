"""Artifacts of a flow in Prefect: the table of edit success, the gate's decision and the number of kept pairs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from emuedit.operations import ledger_commands

if TYPE_CHECKING:
    from emuedit.operations.yield_ledger import Ledger
    from flows.release import RetrainResult


def publish(result: "RetrainResult", reason: str) -> None:
    """Create the artifacts of a retrain. Their keys are constant, so Prefect shows how they change between runs."""
    if result.table:
        create_table_artifact(success_rows(result.table), key="edit-success", description="Edit success by task and system")
    if result.ledger:
        create_table_artifact(yield_rows(result.ledger), key="yield", description="Kept pairs by task, and reasons for losses")
    create_markdown_artifact(describe(result, reason), key="retrain", description="Why it ran, and its result")


def success_rows(table: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """One row per task, one column per system."""
    tasks = dict.fromkeys(task for row in table.values() for task in row)
    return [{"task": task} | {system: row.get(task) for system, row in table.items()} for task in tasks]


def yield_rows(ledger: "Ledger") -> list[dict[str, Any]]:
    """One row per task, and one for all tasks."""
    return [{"task": row.task, **row.figures(), "lost most often": ledger_commands.format_reasons(row)} for row in ledger.rows]


def describe(result: "RetrainResult", reason: str) -> str:
    """Describe a retrain in Markdown."""
    lines = [f"**Reason:** {reason}", ""]
    if result.version:
        lines.append(f"**Version:** {result.version.uri}{'' if result.is_new else ' (as before)'}, run {result.run_id}")
    if result.decision:
        lines += ["", f"**Gate:** {'promoted' if result.decision.promote else 'refused'}: {result.decision.reason}"]
        lines += ["", "```", result.decision.table(), "```"] if result.decision.rows else []
    if result.seconds:
        lines += [
            "",
            "| stage | seconds |",
            "|---|---|",
            *(f"| {name} | {value:.0f} |" for name, value in result.seconds.items()),
        ]
    return "\n".join(lines)
