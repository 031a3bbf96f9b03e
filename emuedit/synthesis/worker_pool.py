"""Where the jobs of a station are done: in this process, or by actors on a Ray cluster. What comes out is the same.

A job holds all that decides its result, so any worker may do any job, in any order, and once more after a kill.
Workers write files where this process would: on a cluster of several machines the project lies in a folder that all share.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from emuedit import config

J = TypeVar("J")
D = TypeVar("D")

Team = Callable[[Mapping[str, J]], Iterator[tuple[str, D]]]
"""Does jobs by name; yields each name with what came out, as they are done. Called again it uses the same workers."""


class WorkersError(RuntimeError):
    """Raised for a job that failed on a worker, a worker that did not start, and where there is no Ray."""


class Local(config.Params):
    """One job after the other, in this process."""

    kind: Literal["local"]
    """The word `local`."""


class Ray(config.Params):
    """Actors on the Ray cluster that RAY_ADDRESS names; without it on one started here, for as long as the work takes."""

    kind: Literal["ray"]
    """The word `ray`."""
    actors: int = Field(ge=1)
    """Actors, each with models of its own; those that the cluster has no room for are not waited for."""
    cpus: int = Field(ge=1)
    """CPUs of an actor, and threads of its torch. Where networks run on CUDA it has one GPU besides."""


Workers = Annotated[Local | Ray, Field(discriminator="kind")]


@contextmanager
def hired(workers: Workers, build: Callable[[], Callable[[J], D]], device: str) -> "Iterator[Team[J, D]]":
    """A team whose every worker calls `build` once, which loads models, and then what that gave it for each of its jobs.

    `device` is the word of the station's knob: for 'cuda', and for 'auto' on a cluster with GPUs, an actor has a GPU.
    A failed job raises in this process, with the name of the job: as it is from here, as a WorkersError from an actor.
    """
    if workers.kind == "local":
        yield partial(_here, cache(build))
        return
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        ray.init(logging_level="warning")
    try:
        gpu = device.startswith("cuda") or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1)
        kind = ray.remote(num_cpus=workers.cpus, num_gpus=int(gpu))(_Actor)
        actors = [kind.remote(build) for _ in range(workers.actors)]
        try:
            yield partial(_there, ray, actors)
        finally:
            for actor in actors:
                ray.kill(actor)
    finally:
        if started:
            ray.shutdown()


class _Actor:
    """A worker elsewhere."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._do = build()

    def ready(self) -> None:
        """Come back when it is built."""

    def do(self, job: Any) -> Any:
        """What came out of a job."""
        return self._do(job)


def _here(built: Callable[[], Callable[[J], D]], jobs: Mapping[str, J]) -> Iterator[tuple[str, D]]:
    for name, job in jobs.items():
        try:
            done = built()(job)
        except Exception as error:  # whatever a job raises goes on its way, with the job's name
            error.add_note(f"in {name}")
            raise
        yield name, done


def _there(ray: Any, actors: list[Any], jobs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every actor has one job at a time, the first as soon as it runs: one without room gets none and holds up nobody."""
    waiting, left = iter(jobs.items()), len(jobs)
    busy: dict[Any, tuple[Any, str | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
    while left:
        (first,), _ = ray.wait(list(busy))
        actor, name = busy.pop(first)
        try:
            done = ray.get(first)
        except ray.exceptions.RayError as error:
            raise WorkersError(f"in {name or 'the start of a worker'}: {error}") from error
        if (job := next(waiting, None)) is not None:
            busy[actor.do.remote(job[1])] = actor, job[0]
        if name is not None:
            left -= 1
            yield name, done


def _ray() -> Any:
    # started by `uv run`, Ray would copy the project to its actors and build their environment anew; ours share a folder
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise WorkersError("want Ray for workers of kind ray, got none here; run `uv sync --extra ray`") from error
