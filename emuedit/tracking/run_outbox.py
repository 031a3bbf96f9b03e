"""Results of retrains that MLflow did not take: kept in the workspace, and sent when it is back.

    .emuedit/unsent-runs/<time>-<number>/run.json, files/...

The next retrain and `emuedit sync` send them. Sending twice does no harm: an entry names its run as soon as there is one.
What MLflow refuses lies in `.rejected-<time>-<number>`; renamed back, it is tried again.
"""

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emuedit.data.atomic_file import replacing
from emuedit.tracking import runs, service_errors
from emuedit.tracking.stats import PARENT_RUN_ENV

FOLDER = Path(".emuedit") / "unsent-runs"
_ENTRY, _FILES, _STATS = "run.json", "files", "stats"
_REJECTED = ".rejected-"


@dataclass(frozen=True)
class RunResults:
    """What a run says of a retrain."""

    params: Mapping[str, Any]
    metrics: Mapping[str, Any]
    tags: Mapping[str, str]
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name of an artifact -> file or folder."""
    stats: Mapping[str, Path] = field(default_factory=dict)
    """Stage -> its `stats.jsonl`, whose run becomes a child and is named by the tag `run.<stage>`."""

    def send(self, run_id: str) -> None:
        """Log everything to a run that is open."""
        with _parent(run_id):
            children = {f"run.{stage}": runs.run_id_of(path) for stage, path in self.stats.items()}
        tags = {**self.tags, **{name: child for name, child in children.items() if child}}
        runs.log_run(run_id, self.params, self.metrics, tags, self.files)


def keep(root: Path, workspace: str, run_id: str, results: RunResults) -> Path:
    """Keep results below `root` until they are sent. `run_id`: the run that was opened for them, or empty.

    Files are copied: the workspace's own will be those of the next retrain. Returns the entry's folder.
    """
    entry = root / FOLDER / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    draft = entry.with_name(f".{entry.name}.part")
    draft.mkdir(parents=True)
    values = {
        "params": results.params,
        "metrics": results.metrics,
        "tags": results.tags,
        "workspace": workspace,
        "run_id": run_id,
    }
    values |= {_FILES: _copy(results.files, draft, _FILES), _STATS: _copy(results.stats, draft, _STATS)}
    (draft / _ENTRY).write_text(json.dumps(values, indent=1, default=str) + "\n", encoding="utf-8")
    draft.replace(entry)
    return entry


def entries(root: Path) -> list[Path]:
    """Folders of the results that wait, the oldest first."""
    return sorted(path.parent for path in (root / FOLDER).glob(f"[0-9]*/{_ENTRY}"))


def send_all(root: Path) -> list[str]:
    """Send what waits, the oldest first, and return the ids of the runs. What is sent is deleted.

    A run that MLflow does not have, or that was deleted there, is started again. An entry that MLflow refuses all the same is
    renamed to `.rejected-<entry>`, with a line that says so, and holds up no other. Raises what tells that MLflow is away.
    """
    from mlflow.exceptions import MlflowException

    sent: list[str] = []
    for entry in entries(root):
        try:
            sent.append(_send(entry))
        except (MlflowException, ValueError, KeyError) as error:  # the latter two: of a damaged entry
            if service_errors.is_away(error):
                raise
            rejected = entry.with_name(f"{_REJECTED}{entry.name}")
            entry.replace(rejected)
            reason = " ".join(service_errors.hide_password(str(error)).split())[:200]
            print(f"== not sent: {reason}; the run is kept in {rejected.relative_to(root)}", flush=True)
    return sent


def _send(entry: Path) -> str:
    """Send one entry, delete it and return the id of its run."""
    values = json.loads((entry / _ENTRY).read_text(encoding="utf-8"))
    run_id = values["run_id"]
    if not run_id or not runs.is_active(run_id):
        run_id = runs.start_run("retrain", values["workspace"])
        with replacing(entry / _ENTRY) as partial:  # before anything is logged, so that a second attempt makes no second run
            partial.write_text(json.dumps(values | {"run_id": run_id}, indent=1) + "\n", encoding="utf-8")
    files, stats = ({name: entry / path for name, path in values[kind].items()} for kind in (_FILES, _STATS))
    RunResults(values["params"], values["metrics"], values["tags"], files, stats).send(run_id)
    runs.end_run(run_id, "FINISHED")
    shutil.rmtree(entry)
    return run_id


def _copy(files: Mapping[str, Path], draft: Path, kind: str) -> dict[str, str]:
    """Copy files and folders below an entry. Returns name -> path in the entry."""
    copies = {}
    for number, (name, path) in enumerate(sorted(files.items())):
        target = draft / kind / str(number) / path.name
        target.parent.mkdir(parents=True)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, target)
        copies[name] = target.relative_to(draft).as_posix()
    return copies


@contextlib.contextmanager
def _parent(run_id: str) -> Iterator[None]:
    """Within the block, runs of stages that are created become children of this run."""
    before = os.environ.get(PARENT_RUN_ENV)
    os.environ[PARENT_RUN_ENV] = run_id
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARENT_RUN_ENV]
        else:
            os.environ[PARENT_RUN_ENV] = before
