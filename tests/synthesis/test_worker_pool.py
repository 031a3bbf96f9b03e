"""The same jobs in this process, in two processes and on a Ray cluster; the device and number format of the workers."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from emuedit.config import ParamsError, load
from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Instruction
from emuedit.data.shards import write_shard
from emuedit.failures import FailureKind
from emuedit.runtime import Runtime
from emuedit.stages import pairs
from emuedit.synthesis import worker_pool as pool_module
from emuedit.synthesis.worker_pool import (
    LocalWorkers,
    RayWorkers,
    WorkerPoolError,
    Workers,
    choose_runtime,
    connection,
    count_processes,
    worker_pool,
)
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


def test_models_of_unknown_size_are_loaded_once_in_this_process(tmp_path: Path) -> None:
    workers = LocalWorkers(processes=count_processes(LocalWorkers(), "cpu", None))
    with worker_pool(workers, partial(build_work, tmp_path), "cpu") as pool:
        assert dict(pool({"shard-0": Job("square", 3)})) == {"shard-0": 9}
    assert worker_pids(tmp_path) == {os.getpid()}


def test_the_size_of_models_includes_linked_folders(tmp_path: Path) -> None:
    for name, n_bytes in (("model/vae", 10), ("finetuned", 20), ("clip", 5)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_bytes(b"0" * n_bytes)
    (tmp_path / "model" / "unet").symlink_to(tmp_path / "finetuned")
    models = [str(tmp_path / "model"), str(tmp_path / "clip" / "weights")]
    assert pairs._weights_bytes(models) == 35
    assert pairs._weights_bytes([*models, "owner/name"]) is None


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


class FakeRay:
    """Ray on a cluster whose workers have a GPU for bfloat16 or none; this process has no GPU."""

    exceptions = SimpleNamespace(RayError=LookupError)

    def __init__(self, n_gpus: int, patch: pytest.MonkeyPatch) -> None:
        self.n_gpus, self.patch = n_gpus, patch
        self.resources: list[dict[str, int]] = []
        self.connections = self.closed = 0
        patch.setitem(sys.modules, "ray", self)
        patch.setattr("torch.cuda.is_available", lambda: False)
        patch.setattr("torch.backends.mps.is_available", lambda: False)

    def init(self, **options: Any) -> None:
        self.connections += 1

    def shutdown(self) -> None:
        self.closed += 1

    def is_initialized(self) -> bool:
        return self.connections > self.closed

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0} | ({"GPU": float(self.n_gpus)} if self.n_gpus else {})

    def remote(self, **resources: int) -> Callable[..., Any]:
        self.resources.append(resources)
        return lambda target: SimpleNamespace(remote=partial(self._run, target, resources["num_gpus"]))

    def _run(self, target: Callable[..., Any], n_gpus: int, *arguments: Any) -> Any:
        with self.patch.context() as patch:
            patch.setattr("torch.cuda.is_available", lambda: bool(n_gpus))
            patch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
            patch.setattr("emuedit.runtime._auto_dtype", {"cuda": "bfloat16", "cpu": "float16"}.__getitem__)
            return target(*arguments)

    def get(self, result: Any) -> Any:
        return result

    def kill(self, actor: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("n_gpus", "device", "expected"),
    [
        (2, "auto", Runtime("cuda", "bfloat16")),
        (2, "cuda", Runtime("cuda", "bfloat16")),
        (0, "cuda", Runtime("cuda", "bfloat16")),  # a cluster that scales up
        (2, "cpu", Runtime("cpu", "float16")),
        (0, "auto", Runtime("cpu", "float16")),  # float16 on a CPU: what only the fake worker chooses
    ],
)
def test_with_ray_a_worker_of_the_cluster_chooses_the_runtime_also_for_a_driver_without_a_gpu(
    n_gpus: int, device: str, expected: Runtime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = FakeRay(n_gpus, monkeypatch)
    runtime = choose_runtime(RAY, device, "auto")
    assert runtime == expected
    with worker_pool(RAY, build_nothing, runtime.device):
        pass
    n_gpus_per_actor = int(expected.device == "cuda")
    assert ray.resources == [{"num_cpus": 1, "num_gpus": n_gpus_per_actor}] * 2  # the choice and the actors
    assert ("no GPU now; waiting" in capsys.readouterr().err) == (n_gpus < n_gpus_per_actor)
    assert choose_runtime(RAY, device, "float32") == Runtime(expected.device, "float32")


def test_one_connection_to_ray_is_enough_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(1, monkeypatch)
    with connection(RAY):
        runtime = choose_runtime(RAY, "auto", "auto")
        with worker_pool(RAY, build_nothing, runtime.device):
            pass
        assert (ray.connections, ray.closed) == (1, 0)
    assert (ray.connections, ray.closed) == (1, 1)
    with connection(HERE):
        assert choose_runtime(HERE, "auto", "float32") == Runtime("cpu", "float32")
    assert ray.connections == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_without_the_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerPoolError, match=r"choice of a number format by a worker: (.|\n)*want a device of this machine"):
        choose_runtime(ACTOR, "mps", "auto")
    assert choose_runtime(ACTOR, "auto", "bfloat16") == Runtime("cpu", "bfloat16")


def publish_instructions(root: Path) -> None:
    """Three instructions, and the models of the toy world."""
    instructions = [
        Instruction("c", "remove", "go", f"a red star on {ground}", f"an empty {ground}", "red star", None, False, 0, "", "")
        for ground in ("grass", "sand", "snow")
    ]
    scratch = scratch_folder(root, "instructions", "test")
    write_shard(scratch / "shard-00000.parquet", instructions, Instruction)
    publish(scratch, root / pairs.IN, "instructions", {}, {})
    (root / "toyworld").symlink_to(ROOT / "toyworld")


def load_pairs_params(**changes: Any) -> pairs.PairsParams:
    return load(pairs.PairsParams, "pairs", ROOT / "params.yaml").model_copy(update=changes)


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("cuda:1", "auto", r"key 'workers': .*without a number for workers of kind ray.*, got 'cuda:1'; set device: cuda"),
        ("gpu", "auto", "key 'device': .*want device 'auto'"),
        ("cuda", "fp16", "key 'dtype': .*want dtype 'auto'"),
    ],
)
def test_devices_that_ray_cannot_give_are_errors_of_the_params(device: str, dtype: str, message: str, tmp_path: Path) -> None:
    devices = f"device: {device}\n  dtype: {dtype}\n  workers: {{kind: ray, actors: 2, cpus: 1}}"
    text = (ROOT / "params.yaml").read_text().replace("\npairs:\n", f"\npairs:\n  {devices}\n")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message):
        load(pairs.PairsParams, "pairs", tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text(text.replace(devices, "device: cuda:1"))
    assert load(pairs.PairsParams, "pairs", tmp_path / "params.yaml").device == "cuda:1"  # with local workers


def generate_pairs(workers: Workers, root: Path) -> dict[str, bytes]:
    """The files of the stage `pairs`, made of three instructions in three shards."""
    publish_instructions(root)
    quick = {"steps": 2, "device": "cpu", "dtype": "float32", "instructions_per_shard": 1}
    loose = {"detector_threshold": 0.0, "min_area": 0.0, "max_area": 1.0}  # two steps generate no star
    params = load_pairs_params(**quick, **loose, workers=workers)
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
