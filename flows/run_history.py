"""Why each run of a flow started, why it ran each stage, and what it skipped, also for runs that had nothing to do.

    .emuedit/flow-runs.jsonl    one line per run of `retrain` and `refresh-data` in this folder

A run with stages that are out of date also has these as tags of its MLflow run from its start, so that a failed or killed run has
them too. A run without such stages has no MLflow run: the line takes a millisecond.
"""

import contextlib
import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from emuedit.tracking import mlflow_client, registry, runs
from emuedit.tracking.service_errors import hide_password

FILE = Path(".emuedit/flow-runs.jsonl")
STAGE_REASONS_TAG, SKIPPED_TAG = "stages.why", "stages.skipped"
"""Tags of a run: why each stage was run; the stages that were up to date."""
WHY_ARTIFACT = "stages/why.json"
"""Artifact of a run: stage -> list of reasons. Unlike the tag, it is never shortened."""

StaleStages = Mapping[str, tuple[str, ...]]
"""Stages to run -> why each is out of date, as from `dvc_graph.Graph.stale`."""


@dataclass(frozen=True)
class RunLine:
    """One run of a flow, as in the file."""

    flow: str
    reason: str
    """Why it started, see `run_reason`."""
    stale: StaleStages = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Stages that finished -> their seconds; filled while the flow runs."""
    run_id: str = ""
    """Its run in MLflow; empty: none."""
    outcome: str = "finished"
    """`finished`, `skipped: ...`, `failed: ...` or `stopped: ...`."""


def append(root: Path, line: RunLine) -> None:
    """Append a run to the file. An error, such as a folder that is not writable, is printed: the run itself is more important."""
    fields = {"why" if name == "stale" else name: value for name, value in asdict(line).items()}
    entry = {"time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), **fields}
    try:
        (root / FILE).parent.mkdir(exist_ok=True)
        with (root / FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
    except OSError as error:
        print(f"== {FILE} was not written: {error.strerror}; make the folder writable to keep this record", flush=True)


@contextlib.contextmanager
def recorded(root: Path, line: RunLine) -> Iterator[None]:
    """Append a run to the file at the end of the block; if that raises, with the first line of the error as its outcome."""
    try:
        yield
    except BaseException as error:
        kind = "failed" if isinstance(error, Exception) else "stopped"
        append(root, replace(line, outcome=f"{kind}: {first_line(error)}"))
        raise
    append(root, line)


def first_line(error: BaseException) -> str:
    """The first line of an error's text without passwords; the name of its class if the text is empty."""
    lines = hide_password(str(error)).splitlines()
    return lines[0].removesuffix(":") if lines else type(error).__name__


def store_reasons(line: RunLine, stages: Iterable[str]) -> None:
    """Log to its MLflow run which flow it belongs to, why it started, why it runs each stage, and which of `stages` it skips.

    An error of MLflow is printed; then only the file has the reasons. Does nothing for a line without a run.
    """
    if not line.run_id:
        return
    skipped = ", ".join(name for name in stages if name not in line.stale)
    tags = {registry.RUN_REASON_TAG: line.reason, SKIPPED_TAG: skipped, **stage_reasons_tags(line.stale)}
    try:
        mlflow_client.client().update_run(line.run_id, name=line.flow)
        runs.log_run(line.run_id, tags=tags)
        runs.log_text(line.run_id, WHY_ARTIFACT, json.dumps(line.stale, indent=1) + "\n")
    except Exception as error:  # any error of MLflow: the stages can run without it
        print(f"== the reasons are only in {FILE}: {hide_password(str(error))}", flush=True)


def stage_reasons_tags(stale: StaleStages) -> dict[str, str]:
    """The tag with the reasons of all stages, such as `pairs: param pairs: modified; dataset: follows pairs`."""
    return {STAGE_REASONS_TAG: "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in stale.items())}
