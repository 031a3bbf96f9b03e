"""Artifacts of a flow in Prefect: why its stages run, edit success, the gate's decision, kept pairs, contact sheet and links.

Their keys are constant, so Prefect shows how they change between runs.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from emuedit.operations import ledger_commands
from emuedit.tracking import mlflow_client, registry
from emuedit.tracking.service_errors import hide_password
from emuedit.tracking.store_address import tracking_uri

if TYPE_CHECKING:
    from emuedit.operations.yield_ledger import Ledger
    from flows.dvc_graph import Graph
    from flows.retrain_result import RetrainResult
    from flows.run_history import RunLine
    from flows.yield_record import YieldRecord

CONTACT_SHEET = "contact_sheet.png"
"""File of a stage with `meta: {report: true}` that is shown as an artifact."""
MAX_IMAGE_BYTES = 150_000
"""Limit for an image, which Prefect stores in its database as text that is a third longer."""
_WIDTHS_PX, _QUALITY = (1600, 1200, 900, 600, 300), 80


@dataclass(frozen=True)
class Link:
    """A link artifact."""

    key: str
    url: str
    text: str


def publish_stages(line: "RunLine", stages: Sequence[str]) -> None:
    """Create the table of all `stages` of a flow before they run: which it runs, and why."""
    rows = [{"stage": name, "state": "out of date" if name in line.stale else "up to date"} for name in stages]
    table = [row | {"why": "; ".join(line.stale.get(row["stage"], ()))} for row in rows]
    create_table_artifact(table, key="stages", description=f"{line.flow}: {line.reason}")


def publish(result: "RetrainResult", reason: str, graph: "Graph") -> None:
    """Create the artifacts of the results of a retrain. Without stages that ran, the contact sheet is left out."""
    if result.table:
        create_table_artifact(success_rows(result.table), key="edit-success", description="Edit success by task and system")
    _publish_yield(result.ledger)
    if result.seconds and (sheet := find_contact_sheet(graph)):
        text = f"![contact sheet]({image_uri(graph.root / sheet)})\n\n`{sheet}`, reduced"
        create_markdown_artifact(text, key="contact-sheet", description="Edits of the evaluation")
    version = result.version.number if result.version else None
    published = links(result.run_id, version, find_reports(graph))
    for link in published:
        create_link_artifact(link.url, link.text, key=link.key)
    text = "\n".join([describe(result, reason), "", *(f"- [{link.text}]({link.url})" for link in published)])
    create_markdown_artifact(text, key="retrain", description="Why it ran, and its result")


def publish_refresh(reason: str, record: "YieldRecord", seconds: Mapping[str, float], run_id: str) -> None:
    """Create the artifacts of a refresh of the data."""
    _publish_yield(record.ledger)
    published = links(run_id, None, [])
    for link in published:
        create_link_artifact(link.url, link.text, key=link.key)
    lines = [f"**Reason:** {reason}", *_seconds_table(seconds), "", *(f"- [{link.text}]({link.url})" for link in published)]
    create_markdown_artifact("\n".join(lines), key="refresh-data", description="Why it ran, and its result")


def links(run_id: str, version: int | None, reports: Sequence[Path]) -> list[Link]:
    """Links to the run, the version and the reports in MLflow; none if MLflow is a local database or does not answer."""
    parts = urlsplit(tracking_uri())
    if parts.scheme not in ("http", "https") or not run_id:
        return []
    try:
        experiment = str(mlflow_client.client().get_run(run_id).info.experiment_id)
    except Exception as error:  # any error of MLflow: the links only help to find the results
        print(f"== no links to MLflow: {hide_password(str(error))}", flush=True)
        return []
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    run_url = f"{address}/#/experiments/{experiment}/runs/{run_id}"
    entries = [Link("mlflow-run", run_url, f"Run {run_id} in MLflow")]
    if version is not None:
        url = f"{address}/#/models/{quote(registry.MODEL_NAME)}/versions/{version}"
        entries.append(Link("model-version", url, f"{registry.MODEL_NAME}, version {version}"))
    for path in reports:
        key = re.sub(r"[^a-z0-9]+", "-", f"report-{path.parent.name}".lower())
        entries.append(Link(key, f"{run_url}/artifacts/{quote(path.as_posix())}", f"Report {path.as_posix()}"))
    return entries


def find_contact_sheet(graph: "Graph") -> Path | None:
    """The contact sheet of the stages with `meta: {report: true}`, relative to the root; None if there is none."""
    return next((path for path in _files_of_report_stages(graph) if path.name == CONTACT_SHEET), None)


def find_reports(graph: "Graph") -> list[Path]:
    """The file for people of each stage with `meta: {report: true}`: `report.md`, else the contact sheet, else metrics."""
    reports: dict[Path, Path] = {}
    for name in ("report.md", CONTACT_SHEET, "metrics.json"):
        for path in _files_of_report_stages(graph):
            if path.name == name:
                reports.setdefault(path.parent, path)
    return list(reports.values())


def image_uri(path: Path) -> str:
    """An image as a data URI of a JPEG of at most MAX_IMAGE_BYTES, with a smaller width if necessary."""
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGB")
    for width_px in _WIDTHS_PX:
        reduced = image.copy()
        reduced.thumbnail((width_px, 4 * width_px))  # both are limits; the shape is kept
        buffer = io.BytesIO()
        reduced.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        if buffer.tell() <= MAX_IMAGE_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
    return "\n".join([*lines, *_seconds_table(result.seconds)])


def _publish_yield(ledger: "Ledger | None") -> None:
    if ledger:
        create_table_artifact(yield_rows(ledger), key="yield", description="Kept pairs by task, and reasons for losses")


def _seconds_table(seconds: Mapping[str, float]) -> list[str]:
    """Lines of a Markdown table; none if no stage ran."""
    rows = [f"| {name} | {value:.0f} |" for name, value in seconds.items()]
    return ["", "| stage | seconds |", "|---|---|", *rows] if rows else []


def _files_of_report_stages(graph: "Graph") -> Iterator[Path]:
    """Files of the stages with `meta: {report: true}`, relative to the root."""
    for out in (out for stage in graph.stages if stage.meta.get("report") for out in stage.outs):
        yield from sorted(file.relative_to(graph.root) for file in (graph.root / out).rglob("*") if file.is_file())
