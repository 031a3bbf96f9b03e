"""The same jobs in this process, in two processes and on a Ray cluster."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from emuedit.config import load
from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Instruction
from emuedit.data.shards import write_shard
from emuedit.failures import FailureKind
from emuedit.stages import pairs
from emuedit.synthesis import worker_pool as pool_module
from emuedit.synthesis.worker_pool import LocalWorkers, RayWorkers, WorkerPoolError, Workers, processes_that_fit, worker_pool
from tests.synthesis.plain_jobs import Job, build_nothing, build_work, worker_pids

ROOT = Path(__file__).parents[2]
GIB = 2**30
HERE = LocalWorkers(processes=1)
RAY, ACTOR = (RayWorkers(kind="ray", actors=n, cpus=1) for n in (2, 1))
FAILING_JOBS = {"shard-0": Job("square", 0), "shard-1": Job("ValueError", 1), "shard-2": Job("square", 2)}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of two CPUs for all tests of this file: it takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}.items():
            patch.setenv(name, value)
        ray = pool_module._import_ray()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", object_store_memory=80 * 2**20)
        yield
        ray.shutdown()


@pytest.fixture
def workers(request: pytest.FixtureRequest) -> Workers:
    """The workers that a test is parametrized with, and the cluster that they may need."""
    if request.param.kind == "ray":
        request.getfixturevalue("ray_cluster")
    return request.param


@pytest.mark.parametrize(
    "workers", [HERE, pytest.param(RAY, marks=pytest.mark.slow)], ids=lambda workers: workers.kind, indirect=True
)
def test_every_job_is_done_once_by_workers_that_are_built_once(workers: Workers, tmp_path: Path) -> None:
    rounds = [{f"shard-{n}": Job("square", n) for n in numbers} for numbers in (range(5), range(5, 8), ())]
    with worker_pool(workers, partial(build_work, tmp_path), "cpu") as pool:
        results = [dict(pool(jobs)) for jobs in rounds]
    assert results == [{name: job.number**2 for name, job in jobs.items()} for jobs in rounds]
    assert {path.name for path in tmp_path.glob("begun-*")} == {f"begun-{n}" for n in range(8)}  # a second begin is an error
    pids = worker_pids(tmp_path)  # a second build in one process is an error, too
    assert (pids == {os.getpid()}) if workers.kind == "local" else (len(pids) in (1, 2) and os.getpid() not in pids)


@pytest.mark.parametrize(
    ("weights_bytes", "memory_bytes", "processes"),
    [(0, 64 * GIB, 8), (GIB, 20 * GIB, 2), (GIB, 29 * GIB, 2), (GIB, 30 * GIB, 3), (GIB, 2 * GIB, 1), (None, 64 * GIB, 1)],
)
def test_processes_are_limited_by_cores_and_memory(
    weights_bytes: int | None, memory_bytes: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "available_cores", lambda: 8)
    assert processes_that_fit(weights_bytes, memory_bytes) == processes


def test_models_of_unknown_size_are_loaded_once_in_this_process(tmp_path: Path) -> None:
    with worker_pool(LocalWorkers(), partial(build_work, tmp_path), "cpu", weights_bytes=None) as pool:
        assert dict(pool({"shard-0": Job("square", 3)})) == {"shard-0": 9}
    assert worker_pids(tmp_path) == {os.getpid()}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_the_cluster_has_no_room_for_delays_nobody(tmp_path: Path) -> None:
    with worker_pool(RayWorkers(kind="ray", actors=5, cpus=1), partial(build_work, tmp_path), "cpu") as pool:
        assert len(dict(pool({f"shard-{n}": Job("square", n) for n in range(4)}))) == 4


def test_a_failed_job_is_named_in_a_note_of_its_error(tmp_path: Path) -> None:
    with worker_pool(HERE, partial(build_work, tmp_path), "cpu") as pool, pytest.raises(ValueError, match="cannot do 1") as error:
        list(pool(FAILING_JOBS))
    assert error.value.__notes__ == ["in shard-1"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_job_of_an_actor_is_named(tmp_path: Path) -> None:
    with (
        worker_pool(ACTOR, partial(build_work, tmp_path), "cpu") as pool,
        pytest.raises(WorkerPoolError, match=r"in shard-1: (.|\n)*ValueError: cannot do 1") as error,
    ):
        list(pool(FAILING_JOBS))
    assert error.value.kind is FailureKind.OTHER


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("action", ["MemoryError", "die"])
def test_an_actor_that_ran_out_of_memory_or_died_may_be_tried_again(action: str, tmp_path: Path) -> None:
    with worker_pool(ACTOR, partial(build_work, tmp_path), "cpu") as pool, pytest.raises(WorkerPoolError) as error:
        list(pool({"shard-0": Job(action)}))
    assert error.value.kind is FailureKind.MEMORY


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_cannot_start_says_why() -> None:
    with (
        worker_pool(ACTOR, build_nothing, "cpu") as pool,
        pytest.raises(WorkerPoolError, match=r"start of a worker: (.|\n)*no models here"),
    ):
        list(pool({"shard-0": Job("square")}))


def test_without_ray_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerPoolError, match="run `uv sync --extra ray`"), worker_pool(RAY, build_nothing, "cpu"):
        pass


def test_the_params_choose_the_workers() -> None:
    validate: Callable[[Any], Any] = TypeAdapter(Workers).validate_python
    for workers in (HERE, LocalWorkers(processes=2), RAY):
        assert validate(workers.model_dump()) == workers
    with pytest.raises(ValueError, match="cpus"):
        validate({"kind": "ray", "actors": 2})


def generate_pairs(workers: Workers, root: Path) -> dict[str, bytes]:
    """The files of the stage `pairs`, made of three instructions in three shards."""
    instructions = [
        Instruction("c", "remove", "go", f"a red star on {ground}", f"an empty {ground}", "red star", None, False, 0, "", "")
        for ground in ("grass", "sand", "snow")
    ]
    scratch = scratch_folder(root, "instructions", "test")
    write_shard(scratch / "shard-00000.parquet", instructions, Instruction)
    publish(scratch, root / pairs.IN, "instructions", {}, {})
    (root / "toyworld").symlink_to(ROOT / "toyworld")
    quick = {"steps": 2, "device": "cpu", "dtype": "float32", "instructions_per_shard": 1}
    loose = {"detector_threshold": 0.0, "min_area": 0.0, "max_area": 1.0}  # two steps generate no star
    params = load(pairs.PairsParams, "pairs", ROOT / "params.yaml").model_copy(update={**quick, **loose, "workers": workers})
    assert pairs.run(params, root).counts["pairs_remove"] == 3
    return {path.name: path.read_bytes() for path in sorted((root / pairs.OUT).iterdir())}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("actors", [ACTOR, pytest.param(RAY, marks=pytest.mark.long)], ids=lambda workers: str(workers.actors))
def test_actors_generate_the_bytes_of_this_process(actors: RayWorkers, tmp_path: Path) -> None:
    """`tests/stages/test_pairs.py` says the same of processes."""
    files_of_actors, files_of_this_process = (generate_pairs(workers, tmp_path / workers.kind) for workers in (actors, HERE))
    assert len(files_of_actors) == 7  # pairs, drops, the summary
    assert files_of_actors == files_of_this_process
