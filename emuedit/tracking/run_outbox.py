"""Results of retrains that could not be uploaded to MLflow: stored in the workspace until it is reachable again.

    .emuedit/unsent-runs/<time>-<number>/run.json, files/...

The next retrain and `emuedit sync` upload them, one process at a time: the one that has locked `.emuedit/unsent-runs.lock`.
Repeated uploads are safe, because an entry records its run once it exists. Entries that MLflow rejects are renamed to
`.rejected-<time>-<number>`; rename them back to retry.
"""

import contextlib
import fcntl
import json
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from emuedit.data.atomic_file import replacing
from emuedit.processes import environment
from emuedit.tracking import runs, service_errors
from emuedit.tracking.stats import PARENT_RUN_ENV

FOLDER = Path(".emuedit") / "unsent-runs"
LOCK = FOLDER.with_name(f"{FOLDER.name}.lock")
_ENTRY, _FILES, _STATS = "run.json", "files", "stats"
_REJECTED = ".rejected-"
_RETRAIN = "retrain"


@dataclass(frozen=True)
class RunResults:
    """The results of a retrain for its run."""

    params: Mapping[str, Any]
    metrics: Mapping[str, Any]
    tags: Mapping[str, str]
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name of an artifact -> file or folder."""
    stats: Mapping[str, Path] = field(default_factory=dict)
    """Stage -> its `stats.jsonl`, whose run becomes a child and is named by the tag `run.<stage>`."""

    def send(self, run_id: str) -> None:
        """Log everything to an open run."""
        with environment({PARENT_RUN_ENV: run_id}):
            children = {f"run.{stage}": runs.run_id_of(path) for stage, path in self.stats.items()}
        tags = {**self.tags, **{name: child for name, child in children.items() if child}}
        runs.log_run(run_id, params=self.params, metrics=self.metrics, tags=tags, files=self.files)


def keep(root: Path, workspace: str, run_id: str, results: RunResults, flow: str = _RETRAIN) -> Path:
    """Store results below `root` until they are uploaded. `run_id`: the run opened for them, or empty. `flow`: name of a new run.

    Files are copied, because the next retrain overwrites those of the workspace. Returns the entry's folder.
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
        "flow": flow,
    }
    values |= {_FILES: _copy(results.files, draft, _FILES), _STATS: _copy(results.stats, draft, _STATS)}
    (draft / _ENTRY).write_text(json.dumps(values, indent=1, default=str) + "\n", encoding="utf-8")
    draft.replace(entry)
    return entry


def entries(root: Path) -> list[Path]:
    """Folders of the pending results, the oldest first."""
    return sorted(path.parent for path in (root / FOLDER).glob(f"[0-9]*/{_ENTRY}"))


def send_all(root: Path) -> list[str]:
    """Upload and delete pending results, the oldest first; returns the ids of their runs.

    A run that is missing or deleted in MLflow is created again. An entry that MLflow rejects is renamed to `.rejected-<entry>`,
    with a message, and does not block others. Waits while another process uploads. Raises the error if MLflow is unreachable, and
    LocalError if the entries cannot be locked.
    """
    from mlflow.exceptions import MlflowException

    sent: list[str] = []
    if not entries(root):
        return sent
    with _locked(root):
        for entry in entries(root):  # without those that another process has uploaded meanwhile
            try:
                sent.append(_send(entry))
            except (MlflowException, ValueError, KeyError) as error:  # the latter two for a damaged entry
                if service_errors.is_away(error):
                    raise
                rejected = _rejected(entry)
                entry.replace(rejected)
                reason = service_errors.one_line(error, 200)
                print(f"== not uploaded: {reason}; the run is stored in {rejected.relative_to(root)}", flush=True)
    return sent


def count_rejected(pending: Iterable[Path]) -> int:
    """The number of these entries that MLflow has rejected since they were listed."""
    return sum(_rejected(entry).exists() for entry in pending)


def _rejected(entry: Path) -> Path:
    return entry.with_name(f"{_REJECTED}{entry.name}")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the lock of the pending results, which the kernel releases with the process."""
    with service_errors.local(f"a lock for {FOLDER}"):
        stream = (root / LOCK).open("w")
    with stream:
        try:
            _wait_for(stream)
        except OSError as error:  # without a file name, from a file system without flock
            raise service_errors.LocalError(
                f"want a folder whose files can be locked (flock), got {error.strerror}: {root / LOCK}; use a file system with "
                "locks, such as a local disk"
            ) from error
        yield


def _wait_for(stream: IO[str]) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"== another process uploads the runs in {FOLDER}; waiting until it ends", flush=True)
        fcntl.flock(stream, fcntl.LOCK_EX)


def _send(entry: Path) -> str:
    """Upload one entry, delete it and return the id of its run."""
    values = json.loads((entry / _ENTRY).read_text(encoding="utf-8"))
    run_id = values["run_id"]
    if not run_id or not runs.is_active(run_id):
        run_id = runs.start_run(values["flow"], values["workspace"])
        with replacing(entry / _ENTRY) as partial:  # before anything is logged, so that a second attempt creates no second run
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
