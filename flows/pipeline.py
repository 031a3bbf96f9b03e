"""The flow `retrain`: one Prefect task for each stage that is out of date, in the order of DVC's graph, then the registry.

DVC is the only cache of results. A failed stage is retried depending on the kind of failure (`failure_kinds`). Its time limit,
further retries and use of the GPU are set in its `meta:` in `dvc.yaml`.
"""

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture, as_completed
from prefect.tasks import Task

from emuedit.config import ParamsError
from emuedit.failures import FailureKind
from emuedit.stages import MEMORY_ENV
from emuedit.tracking.stats import PARENT_RUN_ENV
from flows import dvc_graph, flow_artifacts, lineage_events, publication, release, retrain_lock, run_stage
from flows.failure_kinds import RETRIES, RETRY_DELAYS_S
from flows.run_reason import complete_reason

GPU_SLOT = "emuedit-gpu"
"""Prefect's global concurrency limit for stages with `meta: {gpu: true}`; if the server has no such limit, they run at once."""
_BUSY_WAIT_S, _BUSY_TRIES = 5.0, 60  # wait for another DVC process for five minutes
_STOP_S = 10.0  # longest wait for stages that are being stopped


def should_retry(reproduction: "Task[..., float]", run: TaskRun, state: State[float]) -> bool:
    """Whether Prefect retries a stage, by the kind of failure and the number of earlier failures of this kind."""
    del reproduction, run
    error = state.result(raise_on_failure=False)
    if not isinstance(error, run_stage.StageError) or isinstance(error, run_stage.BusyError):
        return False
    allowed = max(RETRIES[error.kind], error.extra_retries if error.kind is FailureKind.OTHER else 0)
    is_retried = error.n_same_kind <= allowed
    if is_retried:
        smaller = ", with half the batch if it has one" if error.kind is FailureKind.MEMORY else ""
        print(f"== {str(error).splitlines()[0].removesuffix(':')} ({error.kind}); retrying{smaller}", flush=True)
    return is_retried


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def reproduce(
    stage: str,
    root: str,
    timeout_s: float | None,
    environment: dict[str, str],
    force: bool,
    announcement: str,
    needs_gpu: bool = False,
    extra_retries: int = 0,
) -> float:
    """Run one stage and return its seconds. Waits while another DVC process uses the same files."""
    stop, failures = _stop_events[root], _failures[root].setdefault(stage, [])
    print(f"== {announcement}", flush=True)
    halvings = failures.count(FailureKind.MEMORY)
    variables = environment | ({MEMORY_ENV: str(halvings)} if halvings else {})
    slot = concurrency(GPU_SLOT, occupy=1) if needs_gpu else contextlib.nullcontext()
    try:
        with slot:
            return _reproduce_when_free(stage, root, stop, timeout_s, variables, force)
    except run_stage.StageError as error:
        failures.append(error.kind)
        error.n_same_kind, error.extra_retries = failures.count(error.kind), extra_retries
        raise


def _reproduce_when_free(
    stage: str, root: str, stop: threading.Event, timeout_s: float | None, environment: dict[str, str], force: bool
) -> float:
    for tries_left in range(_BUSY_TRIES, -1, -1):
        try:
            seconds = run_stage.run(stage, Path(root), stop, timeout_s, environment, force)
        except run_stage.BusyError as error:
            if not tries_left or stop.is_set():
                raise
            print(f"== {stage}: {str(error).splitlines()[0]}; retrying in {_BUSY_WAIT_S:g} s", flush=True)
            stop.wait(_BUSY_WAIT_S)
        else:
            print(f"== {stage}: {seconds:.1f} s", flush=True)
            return seconds
    raise AssertionError("not reached")


_stop_events: dict[str, threading.Event] = {}  # root -> set to stop its flow; tasks are threads of the flow's process
_failures: dict[str, dict[str, list[FailureKind]]] = {}  # root -> stage -> failures in this flow so far


@flow(name="retrain", validate_parameters=True)
def retrain(
    registry: bool = True, force: bool = False, max_parallel: int = 1, reason: str = "", push: bool = False, branch: str = ""
) -> dict[str, Any]:
    """Run the stages of the working folder that are out of date, register the editor, and apply the promotion gate.

    registry: whether to register the model. force: run all stages. max_parallel: number of stages that may run in parallel.
    reason: why it runs, `schedule: ...`, `data: ...`, `metric: ...` or `person: ...`; empty: the user of this process.
    push: whether to push the data to the remote afterwards. branch: branch for commits of `dvc.lock` and metrics; empty: none.
    If no stage is out of date, records that with the reason, and retries a failed publication. Raises ParamsError.
    """
    if max_parallel < 1:
        raise ParamsError(f"want max_parallel of at least 1, got {max_parallel}; 1 runs one stage at a time")
    root, why = Path.cwd(), complete_reason(reason)
    print(f"== {why}", flush=True)
    with retrain_lock.exclusive(root, lambda text: print(f"== {text}", flush=True)):
        return _retrain(root, why, registry, force, max_parallel, push, branch)


def _retrain(root: Path, why: str, registry: bool, force: bool, max_parallel: int, push: bool, branch: str) -> dict[str, Any]:
    graph = dvc_graph.read(root)
    stale = graph.stale(force)
    release.check(graph, bool(stale) and registry, push, branch)
    source = publication.read_source(root) if branch else None
    registered, problem = (None, "") if stale else release.look_up(graph)
    if not stale and (not registry or registered or problem):
        answer = _skip(graph, why, registered, problem)
        publication.publish(graph, push, branch, release.merge_metrics(graph), why, source)
        return answer
    run_id = release.start(root)
    seconds: dict[str, float] = {}
    try:
        run_stages(graph, stale, {PARENT_RUN_ENV: run_id} if run_id else {}, force, max_parallel, seconds)
        finished = dvc_graph.read(root) if stale else graph
        result = release.finish(root, finished, run_id, seconds, registry, why)
    except BaseException as error:
        release.fail(run_id, error, graph, seconds)
        raise
    flow_artifacts.publish(result, why)
    _emit_lineage(finished, run_id, seconds)
    publication.publish(finished, push, branch, release.merge_metrics(finished), why, source)
    return result.to_dict()


def _emit_lineage(graph: dvc_graph.Graph, run_id: str, seconds: Mapping[str, float]) -> None:
    try:
        lineage_events.emit(graph, run_id, seconds)
    except Exception as error:  # of any transport: the results are complete, and the message says what is missing
        print(f"== no OpenLineage events were sent: {type(error).__name__}: {error}", flush=True)


def _skip(graph: dvc_graph.Graph, why: str, registered: release.RetrainResult | None, problem: str) -> dict[str, Any]:
    """Record that no stage was out of date."""
    state = f"cannot check whether they are registered: {problem}" if problem else "and registered"
    decision = f"skipped: all {len(graph.stages)} stages are up to date, {state}"
    print(f"== {decision}", flush=True)
    result = registered or release.RetrainResult(table=release.success_table(graph))
    flow_artifacts.publish(result, f"{why}; {decision}")
    return result.to_dict() | {"skipped": decision}


def run_stages(
    graph: dvc_graph.Graph,
    stale: Mapping[str, tuple[str, ...]],
    environment: Mapping[str, str],
    force: bool,
    max_parallel: int,
    seconds: dict[str, float] | None = None,
) -> dict[str, float]:
    """Run stages and return the seconds of each. After the first failure, no further stage starts and running stages are stopped.

    seconds: a mapping that is filled and returned; after a failure it contains the stages that finished.
    """
    root = str(graph.root)
    stop = _stop_events[root] = threading.Event()
    _failures[root] = {}
    waiting = [stage for stage in graph.stages if stage.name in stale]
    print(f"== {len(graph.stages) - len(waiting)} of {len(graph.stages)} stages are up to date", flush=True)
    seconds = {} if seconds is None else seconds
    running: dict[PrefectFuture[float], str] = {}
    try:
        while waiting or running:
            unfinished = {stage.name for stage in waiting} | set(running.values())
            ready = [stage for stage in waiting if unfinished.isdisjoint(stage.after)]
            for stage in ready[: max_parallel - len(running)]:
                waiting.remove(stage)
                n_left = len(waiting) + len(running)
                announcement = f"{stage.name} ({', '.join(stale[stage.name][:3])}); {n_left} more to come"
                n_retries = sum(RETRIES.values()) + stage.retries
                delays_s = (RETRY_DELAYS_S + [RETRY_DELAYS_S[-1]] * n_retries)[:n_retries]
                retried = reproduce.with_options(retries=n_retries, retry_delay_seconds=delays_s, retry_condition_fn=should_retry)
                arguments = (stage.name, root, stage.timeout_s, dict(environment), force, announcement)
                future = retried.submit(*arguments, needs_gpu=stage.needs_gpu, extra_retries=stage.retries)
                running[future] = stage.name
            finished = next(iter(as_completed(list(running))))
            seconds[running.pop(finished)] = finished.result()
    except BaseException:
        stop.set()
        for future in running:
            future.wait(_STOP_S)
        raise
    finally:
        del _stop_events[root], _failures[root]
    return seconds
