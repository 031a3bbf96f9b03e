"""Run the jobs of a stage in this process, in local processes, or in actors on a Ray cluster, with equal results.

A job has all data that determine its result, so any worker can run any job, in any order, and repeat it after a kill. Workers
write the same files as this process would: on a cluster of several machines the project must be in a shared folder.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

from pydantic import Field

from emuedit import config, local_processes
from emuedit.failures import FailureKind, ProcessFailedError, kind_of
from emuedit.processes import available_cores, memory_capacity, visible_gpus
from emuedit.runtime import Runtime

J = TypeVar("J")
R = TypeVar("R")
J_contra = TypeVar("J_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

Report = Callable[[str, float], None]
"""Called with the name of a job and the share finished since the last call; from any thread."""


class Work(Protocol, Generic[J_contra, R_co]):
    """Runs a job in a worker; `report` is called with the share finished since the last call."""

    def __call__(self, job: J_contra, report: Callable[[float], None]) -> R_co:
        """The result of a job."""
        ...


Pool = Callable[[Mapping[str, J]], Iterator[tuple[str, R]]]
"""Runs named jobs; yields (name, result) as they finish. Further calls use the same workers."""


def ignore_report(name: str, share: float) -> None:
    """A `Report` that does nothing."""


def _ignore_share(share: float) -> None:
    """The same for a single job."""


class WorkerPoolError(ProcessFailedError):
    """Raised for a failed job, a worker that did not start, and a missing installation of Ray."""


WORKER_BYTES = 2 * 2**30
"""Memory of a worker beside its models: 1 GiB of libraries and images, and the features of `batching.MAX_FEATURE_BYTES`."""


class LocalWorkers(config.Params):
    """Processes on this machine."""

    kind: Literal["local"] = "local"
    """Always `local`."""
    processes: int = Field(0, ge=0)
    """Worker processes, each with its own models; 0: one per GPU, or one per CPU core if memory allows."""


class RayWorkers(config.Params):
    """Actors on the Ray cluster at RAY_ADDRESS, else on a temporary local one."""

    kind: Literal["ray"]
    """Always `ray`."""
    actors: int = Field(ge=1)
    """Number of actors, each with its own models; actors without free resources are not waited for."""
    cpus: int = Field(ge=1)
    """CPUs and torch threads per actor. On CUDA it also has one GPU."""


Workers = Annotated[LocalWorkers | RayWorkers, Field(discriminator="kind")]


def choose_runtime(workers: Workers, device: str, dtype: str) -> Runtime:
    """Device and number format for all workers; `device` and `dtype` are as in `Runtime.choose`.

    Local workers: those of this machine. Ray: this machine may have other devices than the cluster, so 'auto' is 'cuda' if the
    cluster has a GPU now, else 'cpu', and a worker with the resources of an actor chooses the number format. 'cuda' waits for a
    GPU. Raises ValueError for unknown names with local workers, WorkerPoolError for those and for a device that the worker
    lacks with Ray.
    """
    if isinstance(workers, LocalWorkers):
        return Runtime.choose(device, dtype)
    with _ray_connection() as ray:
        n_gpus = ray.cluster_resources().get("GPU", 0)
        if device == "auto":
            device = "cuda" if n_gpus >= 1 else "cpu"
        elif device == "cuda" and n_gpus < 1:
            print("the Ray cluster has no GPU now; waiting until it has, since the device is cuda", file=sys.stderr, flush=True)
        choose = ray.remote(**_resources(workers, device))(_choose_here)
        try:
            runtime: Runtime = ray.get(choose.remote(device, dtype))
        except ray.exceptions.RayError as error:
            raise WorkerPoolError(f"in the choice of a number format by a worker: {error}", _kind_on_actor(ray, error)) from error
    return runtime


def _choose_here(device: str, dtype: str) -> Runtime:
    with _failure_with_its_kind():
        return Runtime.choose(device, dtype)


@contextmanager
def connection(workers: Workers) -> Iterator[None]:
    """With workers of kind ray, one connection to Ray for everything in the block; else nothing."""
    if isinstance(workers, LocalWorkers):
        yield
        return
    with _ray_connection():
        yield


@contextmanager
def worker_pool(
    workers: Workers,
    build: Callable[[], Work[J, R]],
    device: str,
    report: Report = ignore_report,
) -> Iterator[Pool[J, R]]:
    """A pool whose workers call `build` once to load models, then the function that it returned for each job.

    `device`: resolved by `choose_runtime`: 'cpu', 'cuda', 'mps' or, without Ray, 'cuda:1'. LocalWorkers have the number of
    processes that `count_processes` gives for their models; without it, for models without weights. Errors name the job: in this
    process the original error is raised, from another process or an actor a WorkerPoolError.
    """
    if isinstance(workers, RayWorkers):
        with _ray_pool(workers, build, device) as pool:
            yield pool
        return
    processes = count_processes(workers, device, weights_bytes=0)
    if processes == 1:
        yield partial(_do_here, cache(build), report)
        return
    with local_processes.start(processes, build, report, device) as group:
        yield partial(_do_in_processes, group)


def count_processes(workers: LocalWorkers, device: str, weights_bytes: int | None) -> int:
    """Number of processes that `worker_pool` uses; 1: only this process."""
    if workers.processes:
        return workers.processes
    if device == "cuda":
        return max(1, len(visible_gpus()))
    return processes_that_fit(weights_bytes, memory_capacity()) if device == "cpu" else 1


def processes_that_fit(weights_bytes: int | None, memory_bytes: int) -> int:
    """One process per core, limited to three quarters of the memory: WORKER_BYTES plus four times the weights each.

    The factor covers float32 copies of half-precision weights, and activations. One process if the size is unknown.
    """
    if weights_bytes is None:
        return 1
    return max(1, min(available_cores(), memory_bytes * 3 // 4 // (WORKER_BYTES + 4 * weights_bytes)))


def _do_here(get_work: Callable[[], Work[J, R]], report: Report, jobs: Mapping[str, J]) -> Iterator[tuple[str, R]]:
    for name, job in jobs.items():
        try:
            result = get_work()(job, partial(report, name))
        except Exception as error:  # add the job's name to any error
            error.add_note(f"in {name}")
            raise
        yield name, result


def _do_in_processes(group: local_processes.ProcessGroup, jobs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    try:
        yield from group.do(jobs)
    except local_processes.WorkerFailedError as error:
        raise WorkerPoolError(str(error), error.kind) from error


@contextmanager
def _ray_connection() -> Iterator[Any]:
    """The module `ray`, connected to a cluster: an existing connection, or one that ends with the block."""
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(logging_level="warning")
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _resources(workers: RayWorkers, device: str) -> dict[str, int]:
    return {"num_cpus": workers.cpus, "num_gpus": int(device == "cuda")}


@contextmanager
def _ray_pool(workers: RayWorkers, build: Callable[[], Work[J, R]], device: str) -> Iterator[Pool[J, R]]:
    with _ray_connection() as ray:
        actor_type = ray.remote(**_resources(workers, device))(_Actor)
        actors = [actor_type.remote(build) for _ in range(workers.actors)]
        try:
            yield partial(_do_on_actors, ray, actors)
        finally:
            for actor in actors:
                ray.kill(actor)


class _Actor:
    """A worker on a Ray cluster."""

    def __init__(self, build: Callable[[], Work[Any, Any]]) -> None:
        self._build = build
        self._work: Work[Any, Any] | None = None

    def ready(self) -> None:
        """Load the models, once. Not in `__init__`, since Ray reports errors there only as text."""
        if self._work is None:
            with _failure_with_its_kind():
                self._work = self._build()

    def do(self, job: Any) -> Any:
        """The result of a job, after `ready`."""
        assert self._work is not None
        with _failure_with_its_kind():
            return self._work(job, _ignore_share)


@contextmanager
def _failure_with_its_kind() -> Iterator[None]:
    """On an actor, convert errors in the block to one that keeps its kind when sent to the stage."""
    try:
        yield
    except Exception as error:  # the class of an error may not be importable in another process
        raise local_processes.WorkerFailedError(local_processes.explain(error), kind_of(error)) from error


def _do_on_actors(ray: Any, actors: list[Any], jobs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each running actor has one job at a time; actors without resources get none and cause no delay."""
    waiting, n_left = iter(jobs.items()), len(jobs)
    busy: dict[Any, tuple[Any, str | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
    while n_left:
        (finished,), _ = ray.wait(list(busy))
        actor, name = busy.pop(finished)
        try:
            result = ray.get(finished)
        except ray.exceptions.RayError as error:
            raise WorkerPoolError(f"in {name or 'the start of a worker'}: {error}", _kind_on_actor(ray, error)) from error
        if (job := next(waiting, None)) is not None:
            busy[actor.do.remote(job[1])] = actor, job[0]
        if name is not None:
            n_left -= 1
            yield name, result


def _kind_on_actor(ray: Any, error: BaseException) -> FailureKind:
    """The kind of an error raised by Ray. A dead actor counts as out of memory, like a killed process."""
    if isinstance(error, ray.exceptions.ActorDiedError):
        return FailureKind.MEMORY
    return kind_of(getattr(error, "cause", error))


def _import_ray() -> Any:
    # started by `uv run`, Ray would copy the project to its actors and rebuild their environment; ours share a folder
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise WorkerPoolError("want Ray for workers of kind ray, but it is not installed; run `uv sync --extra ray`") from error
