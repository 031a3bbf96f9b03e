"""Working folders in which tests run stages: in this process, or as processes of their own that a signal can stop."""

import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from emuedit import config, params_check
from emuedit.data.publish import Summary
from tests.stages import forked_stage
from tests.warm_server import warm_up

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("base_model", "base_editor", "detector", "segmenter", "clip", "dino", "depth", "t5")
P = TypeVar("P", bound=config.Params)


def toy_world() -> dict[str, Any]:
    """The world of the project's params.yaml, with absolute paths of its models."""
    world = config.load(config.World, "world", ROOT / "params.yaml").model_dump()
    return world | {name: str(ROOT / world[name]) for name in MODELS}


def load_params(model: type[P], section: str, **changes: Any) -> P:
    """The project's params of a stage, with absolute paths of the toy models and some values changed."""
    values = config.load(model, section, ROOT / "params.yaml").model_dump(exclude_unset=True)
    if "world" in values:
        values["world"] = toy_world()
    return model.model_validate(values | changes)


def hide_mlflow(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Send no metrics to MLflow: not from this process, nor from those that it starts, which find an empty module in `folder`."""
    patch.setattr("emuedit.tracking.stats._Mirror._try", lambda self: None)
    (folder / "mlflow.py").write_text("raise ModuleNotFoundError('hidden by a test', name='mlflow')\n")
    patch.syspath_prepend(str(folder))


def skip_estimates(patch: pytest.MonkeyPatch) -> None:
    """Have trainings count no operations and estimate no memory, which takes a second of a core."""
    patch.setattr("emuedit.training.loop.count_flops", lambda *arguments: 1)
    patch.setattr("emuedit.training.training_checks.check_memory", lambda *arguments: [])


def read_files(folder: Path, *ignored: str) -> dict[str, bytes]:
    """Name -> content of every file below a folder."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in ignored)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


class StageProcess:
    """A stage that runs in a process of its own, forked with its libraries imported."""

    def __init__(self, folder: Path, stage: str, pause_s: float) -> None:
        warm_up()
        self._output = folder.with_name(f"{folder.name}-{stage}.output")
        path = os.pathsep.join(map(str, (folder, ROOT)))
        environment = os.environ | {"PAUSE_S": str(pause_s), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        arguments = (str(folder), stage, str(self._output), dict(environment))
        self._process = multiprocessing.get_context("forkserver").Process(target=forked_stage.run, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self._process_id = self._process.pid

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 240) -> None:
        """Wait for a condition; an AssertionError when the stage ends before it is met, or when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self._process.is_alive(), f"the stage ended before it was stopped:\n{self._output.read_text()}"
            assert time.monotonic() < deadline, "the condition was not met in time"
            time.sleep(0.01)

    def children(self) -> list[int]:
        """Ids of the processes below it."""
        return descendants(self._process_id)

    def stop(self, number: signal.Signals, timeout_s: float = 30) -> tuple[int, str]:
        """(exit status, output) after a signal. An AssertionError when a child process outlives the stage."""
        children = self.children()
        os.kill(self._process_id, number)
        ended = self.finish(timeout_s)
        deadline = time.monotonic() + 15
        while alive := [pid for pid in children if is_alive(pid)]:
            assert time.monotonic() < deadline, f"processes outlive the stage: {alive}"
            time.sleep(0.05)
        return ended

    def finish(self, timeout_s: float = 240) -> tuple[int, str]:
        """(exit status, output) of a stage that ends by itself."""
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"the stage did not end in time:\n{self._output.read_text()}"
        return self._process.exitcode, self._output.read_text()

    def kill(self) -> None:
        """End it, if it is still there."""
        self._process.kill()
        self._process.join()


class Workspace:
    """A folder with a params.yaml, in which stages run as commands."""

    def __init__(self, folder: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.processes = folder, list[StageProcess]()
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["world"] = toy_world()
        for section, changes in sections.items():
            params[section] |= changes
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        if not params_check.model_problems(folder, [name for name in params if name != "world"]):
            key = params_check._key(folder, params)
            params_check._remember(folder, key)  # or every process of a test would import torch to check the same

    def start(self, stage: str, pause_s: float = 0.0) -> StageProcess:
        """Start a stage that pauses after every shard it writes."""
        self.processes.append(StageProcess(self.folder, stage, pause_s))
        return self.processes[-1]

    def run(self, stage: str, **changes: Any) -> Summary:
        """Run a stage in this process, with some params changed."""
        module = importlib.import_module(f"emuedit.stages.{stage}")
        params = config.load(getattr(module, f"{stage.title()}Params"), stage, self.folder / "params.yaml")
        summary: Summary = module.run(params.model_copy(update=changes), self.folder)
        return summary

    def scratch_files(self, stage: str, pattern: str) -> list[Path]:
        """Files of a stage's scratch folder."""
        return sorted((self.folder / "scratch" / stage).glob(f"*/{pattern}"))


def check_stop_message(stage: str, number: signal.Signals, status: int, output: str) -> None:
    """A stage that was stopped says in one line how to go on, without a trace."""
    assert status == 128 + number
    assert output.splitlines()[-1] == f"{stage}: stopped by {number.name}; the same command resumes"
    assert output.count("stopped by") == 1
    assert "Traceback" not in output
    assert "Error" not in output


def check_resume(
    stopped: Workspace,
    uninterrupted: Workspace,
    stage: str,
    out: str,
    number: signal.Signals,
    min_children: int = 0,
    **changes: Any,
) -> None:
    """Stop a stage after its first shard and run it again: it keeps the shard and ends with the bytes of a run in one go.

    `min_children`: worker processes that the stage must have when it is stopped, and that must end with it. `changes`: params of
    the runs that are not stopped, which must not change the bytes.
    """
    process = stopped.start(stage, pause_s=60)
    process.wait_until(lambda: stopped.scratch_files(stage, "shard-*.parquet"))
    assert len(process.children()) >= min_children
    status, output = process.stop(number)
    if number != signal.SIGKILL:
        check_stop_message(stage, number, status, output)
    finished = {file.name: file.stat().st_mtime_ns for file in stopped.scratch_files(stage, "shard-*.parquet")}
    assert finished
    assert not (stopped.folder / out).exists()
    stopped.run(stage, **changes)
    assert not list((stopped.folder / "scratch").glob(f"{stage}/*"))
    remade = [name for name, ns in finished.items() if (stopped.folder / out / name).stat().st_mtime_ns != ns]
    assert not remade, f"shards were made again: {remade}"
    uninterrupted.run(stage, **changes)
    assert read_files(stopped.folder / out) == read_files(uninterrupted.folder / out)
    assert len(finished) < len(list((uninterrupted.folder / out).glob("shard-*.parquet"))), (
        "nothing was left to do after the stop"
    )


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, as Linux lists them; none elsewhere."""
    lists = list(Path("/proc").glob(f"{pid}/task/*/children"))
    children = [int(word) for file in lists for word in file.read_text().split()]
    return [*children, *(process for child in children for process in descendants(child))]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
