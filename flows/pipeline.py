"""The flow `retrain`: one Prefect task for each stage that is out of date, in the order of DVC's graph, then the registry.

DVC is the only cache of results. A failed stage is retried depending on the kind of failure (`failure_kinds`). Its time limit,
further retries and use of the GPU are set in its `meta:` in `dvc.yaml`.
"""

import contextlib
import datetime as dt
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.tasks import Task

from emuedit.config import ParamsError
from emuedit.failures import FailureKind
from emuedit.stages import MEMORY_ENV
from emuedit.tracking.stats import PARENT_RUN_ENV
from flows import (
    dvc_graph,
    flow_artifacts,
    publication,
    release,
    result_origin,
    retrain_lock,
    run_history,
    run_stage,
    stage_outputs,
)
from flows.failure_kinds import RETRIES, RETRY_DELAYS_S, max_retries
from flows.gpu_slot import gpu_slot
from flows.lineage_events import LineageLog, StageTimes
from flows.mail_notification import mail_on_failure
from flows.retrain_options import RetrainOptions
from flows.retrain_result import RetrainResult
from flows.run_history import RunLine
from flows.run_reason import complete_reason
from flows.run_stage import BusyError, StageCall, StageError, StageStoppedError

FLOW = "retrain"
_BUSY_WAIT_S, _BUSY_TRIES = 5.0, 60  # wait for another DVC process for five minutes
_STOP_S = 10.0  # longest wait for stages that are being stopped


def should_retry(reproduction: "Task[..., float]", run: TaskRun, state: State[float]) -> bool:
    """Whether Prefect retries a stage, as `reproduce` decided."""
    del reproduction, run
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageError) and error.is_retried


@task(task_run_name="{call.name}", cache_policy=NO_CACHE)
def reproduce(call: StageCall, announcement: str, needs_gpu: bool = False, extra_retries: int = 0) -> float:
    """Run one stage and return its seconds. Waits before a retry, and while another DVC process uses the same files.

    Waiting for any reason ends when the flow stops its stages, unlike the waiting of Prefect: a flow ends after its last task.
    A StageError says whether the stage is to be retried, by its kind and the number of failures of this kind.
    """
    stage, state = call.name, _states[call.root]
    failures = state.failures.setdefault(stage, [])
    if failures and state.stop.wait(RETRY_DELAYS_S[min(len(failures), len(RETRY_DELAYS_S)) - 1]):
        raise StageStoppedError(stage)
    print(f"== {announcement}", flush=True)
    if halvings := int(os.environ.get(MEMORY_ENV, "0")) + failures.count(FailureKind.MEMORY):
        call = replace(call, environment={**call.environment, MEMORY_ENV: str(halvings)})
    try:
        with gpu_slot(state.stop) if needs_gpu else contextlib.nullcontext(True) as may_run:
            if not may_run:
                raise StageStoppedError(stage)
            start = dt.datetime.now(dt.UTC)
            try:
                seconds = _run_when_free(call, state.stop)
                print(f"== {stage}: {seconds:.1f} s", flush=True)
                return seconds
            finally:
                first = state.times[stage].start if stage in state.times else start
                state.times[stage] = StageTimes(first, dt.datetime.now(dt.UTC))
    except (BusyError, StageStoppedError):  # not retried
        raise
    except StageError as error:
        failures.append(error.kind)
        error.is_retried = failures.count(error.kind) <= max_retries(error.kind, extra_retries)
        if error.is_retried:
            smaller = ", with half the batch if it has one" if error.kind is FailureKind.MEMORY else ""
            print(f"== {str(error).splitlines()[0].removesuffix(':')} ({error.kind}); retrying{smaller}", flush=True)
        raise


def _run_when_free(call: StageCall, stop: threading.Event) -> float:
    for _ in range(_BUSY_TRIES):
        try:
            return run_stage.run(call, stop)
        except BusyError as error:
            if stop.is_set():
                raise
            print(f"== {call.name}: {str(error).splitlines()[0]}; retrying in {_BUSY_WAIT_S:g} s", flush=True)
            stop.wait(_BUSY_WAIT_S)
    return run_stage.run(call, stop)


@dataclass
class _FlowState:
    """What the tasks of a flow share with it; they are threads of its process."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Set to stop the stages."""
    failures: dict[str, list[FailureKind]] = field(default_factory=dict)
    """Stage -> its failures so far."""
    times: dict[str, StageTimes] = field(default_factory=dict)
    """Stages that have ended at least once."""


_states: dict[Path, _FlowState] = {}  # root -> its flow


@flow(name=FLOW, validate_parameters=True, on_failure=[mail_on_failure], on_crashed=[mail_on_failure])
def retrain(
    registry: bool = True, force: bool = False, max_parallel: int = 1, reason: str = "", push: bool = False, branch: str = ""
) -> dict[str, Any]:
    """Run the stages of the working folder that are out of date, register the editor, and apply the promotion gate.

    registry: whether to register the model. force: run all stages. max_parallel: number of stages that may run in parallel.
    reason: why it runs, `schedule: ...`, `data: ...`, `metric: ...` or `person: ...`; empty: the user of this process.
    push: whether to push the data to the remote afterwards. branch: branch for commits of `dvc.lock` and metrics; empty: none.
    If no stage is out of date, records that with the reason, and retries a failed publication. Raises ParamsError, and at the end
    NotRegisteredError if the registry failed.
    """
    if max_parallel < 1:
        raise ParamsError(f"want max_parallel of at least 1, got {max_parallel}; 1 runs one stage at a time")
    root = Path.cwd()
    options = RetrainOptions(
        registry=registry, force=force, max_parallel=max_parallel, reason=complete_reason(reason), push=push, branch=branch
    )
    print(f"== {options.reason}", flush=True)
    with retrain_lock.exclusive(root):
        return _retrain(root, options)


def _retrain(root: Path, options: RetrainOptions) -> dict[str, Any]:
    graph = dvc_graph.read(root)
    stale = graph.stale(options.force)
    release.check(graph, options, will_run=bool(stale))
    at_start = result_origin.read_start(root)  # before the first stage, since people edit files during training
    if not stale and (up_to_date := release.up_to_date(graph, options)):
        decision = f"skipped: {up_to_date.state}"
        print(f"== {decision}", flush=True)
        with run_history.recorded(root, RunLine(FLOW, options.reason, outcome=decision)):
            flow_artifacts.publish(up_to_date.result, f"{options.reason}; {decision}", graph)
            _publish(graph, up_to_date.result, options, at_start)
        return up_to_date.result.to_dict() | {"skipped": decision}
    run_id = release.start(root)
    seconds: dict[str, float] = {}
    line, names = RunLine(FLOW, options.reason, stale, seconds, run_id), [stage.name for stage in graph.stages]
    with run_history.recorded(root, line):
        try:
            run_history.store_reasons(line, names)
            flow_artifacts.publish_stages(line, names)
            run_stages(graph, stale, run_id, options.force, options.max_parallel, seconds)
            finished = dvc_graph.read(root) if stale else graph
            result = release.finish(finished, run_id, seconds, options, at_start)
        except BaseException as error:
            release.fail(run_id, error, graph, seconds)
            raise
        if not run_id:  # MLflow did not answer at the start
            run_history.store_reasons(replace(line, run_id=result.run_id), names)
        flow_artifacts.publish(result, options.reason, finished)
        _publish(finished, result, options, at_start)
        if result.problem:
            raise release.NotRegisteredError(result.problem)
    return result.to_dict()


def _publish(graph: dvc_graph.Graph, result: RetrainResult, options: RetrainOptions, at_start: result_origin.StartState) -> None:
    """Push the data and commit to the branch, as requested, and tag the version with the commit."""
    metrics = stage_outputs.merge_metrics(graph)
    commit = publication.publish(graph, options.push, options.branch, metrics, options.reason, at_start)
    result_origin.tag_published(result.version, options.branch, commit)


def run_stages(
    graph: dvc_graph.Graph,
    stale: Mapping[str, tuple[str, ...]],
    run_id: str,
    force: bool,
    max_parallel: int,
    seconds: dict[str, float] | None = None,
) -> dict[str, float]:
    """Run stages and return the seconds of each. After the first failure, no further stage starts and running stages are stopped.

    The OpenLineage events of a stage are sent when it ends. run_id: the MLflow run of the flow, the parent of the stages' runs;
    empty: none. seconds: a mapping that is filled and returned; after a failure it contains the stages that finished.
    """
    lineage = LineageLog(graph, run_id)
    state = _states[graph.root] = _FlowState()
    waiting = [stage for stage in graph.stages if stage.name in stale]
    print(f"== {len(graph.stages) - len(waiting)} of {len(graph.stages)} stages are up to date", flush=True)
    seconds = {} if seconds is None else seconds
    environment = {PARENT_RUN_ENV: run_id} if run_id else {}
    futures: dict[str, PrefectFuture[float]] = {}
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
                retried = reproduce.with_options(retries=n_retries, retry_delay_seconds=0, retry_condition_fn=should_retry)
                call = StageCall(stage.name, graph.root, stage.timeout_s, environment, force)
                # The upstream stages have finished; `wait_for` records the edges, which Prefect shows.
                upstream = [futures[name] for name in stage.after if name in futures]
                future = retried.submit(call, announcement, stage.needs_gpu, stage.retries, return_state=False, wait_for=upstream)
                running[future], futures[stage.name] = stage.name, future
            finished = next(iter(as_completed(list(running))))
            name = running.pop(finished)
            try:
                seconds[name] = finished.result()
            except Exception as error:
                if name in state.times:
                    lineage.failed(name, state.times[name], run_history.first_line(error))
                raise
            lineage.completed(name, state.times[name])
    except BaseException:
        state.stop.set()
        for future in running:
            future.wait(_STOP_S)
        raise
    finally:
        del _states[graph.root]
    return seconds
