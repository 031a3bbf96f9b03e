"""The flow: one Prefect task for each stage that is out of date, in the order of DVC's graph, then the registry.

DVC is the only cache of results. Retries and time limits come from the `meta:` of a stage in `dvc.yaml`.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed

from emuedit.tracking.stats import PARENT_RUN_ENV
from flows import dvc_graph, release, run_stage

_BUSY_WAIT_S, _BUSY_TRIES = 5.0, 60  # another dvc is waited for, five minutes in all
_RETRY_S = 10.0
_STOP_S = 10.0  # longest wait for stages that are being stopped


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def reproduce(
    stage: str, root: str, timeout_s: float | None, environment: dict[str, str], force: bool, announcement: str
) -> float:
    """Run one stage and return its seconds. Waits while another dvc is busy with the same files."""
    stop = _stop_events[root]
    print(f"== {announcement}", flush=True)
    for tries_left in range(_BUSY_TRIES, -1, -1):
        try:
            seconds = run_stage.run(stage, Path(root), stop, timeout_s, environment, force)
        except run_stage.BusyError as error:
            if not tries_left or stop.is_set():
                raise
            print(f"== {stage}: {str(error).splitlines()[0]}; trying again in {_BUSY_WAIT_S:g} s", flush=True)
            stop.wait(_BUSY_WAIT_S)
        else:
            print(f"== {stage}: {seconds:.1f} s", flush=True)
            return seconds
    raise AssertionError("not reached")


_stop_events: dict[str, threading.Event] = {}  # root -> set when its flow is stopped; tasks are threads of the flow's process


@flow(name="retrain", validate_parameters=True)
def retrain(registry: bool = True, force: bool = False, max_parallel: int = 1) -> dict[str, Any]:
    """In the working folder, run what is out of date, then register the editor and let the promotion gate decide.

    registry: whether the model is registered. force: run everything. max_parallel: stages that may run side by side.
    """
    root = Path.cwd()
    graph = dvc_graph.read(root)
    stale = graph.stale(force)
    run_id = release.start(root)
    try:
        seconds = _run_stages(graph, stale, {PARENT_RUN_ENV: run_id} if run_id else {}, force, max_parallel)
        result = release.finish(root, dvc_graph.read(root) if stale else graph, run_id, seconds, registry)
    except BaseException as error:
        release.fail(run_id, error)
        raise
    return result.to_dict()


def _run_stages(
    graph: dvc_graph.Graph, stale: Mapping[str, tuple[str, ...]], environment: Mapping[str, str], force: bool, max_parallel: int
) -> dict[str, float]:
    """Seconds of each stage that ran. The first failure stops the rest; stages that run beside it are ended."""
    root = str(graph.root)
    stop = _stop_events[root] = threading.Event()
    waiting = [stage for stage in graph.stages if stage.name in stale]
    print(f"== {len(graph.stages) - len(waiting)} of {len(graph.stages)} stages are up to date", flush=True)
    seconds: dict[str, float] = {}
    running: dict[PrefectFuture[float], str] = {}
    try:
        while waiting or running:
            unfinished = {stage.name for stage in waiting} | set(running.values())
            ready = [stage for stage in waiting if unfinished.isdisjoint(stage.after)]
            for stage in ready[: max_parallel - len(running)]:
                waiting.remove(stage)
                n_left = len(waiting) + len(running)
                announcement = f"{stage.name} ({', '.join(stale[stage.name][:3])}); {n_left} more to come"
                retried = reproduce.with_options(retries=stage.retries, retry_delay_seconds=_RETRY_S)
                future = retried.submit(stage.name, root, stage.timeout_s, dict(environment), force, announcement)
                running[future] = stage.name
            finished = next(iter(as_completed(list(running))))
            seconds[running.pop(finished)] = finished.result()
    except BaseException:
        stop.set()
        for future in running:
            future.wait(_STOP_S)
        raise
    finally:
        del _stop_events[root]
    return seconds
