"""Worker processes with plain jobs: their results, and what happens when a job fails or a process is killed."""

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from emuedit import local_processes
from emuedit.failures import FailureKind
from emuedit.local_processes import ProcessGroup, WorkerFailedError, gpu_of_worker
from emuedit.processes import available_cores
from emuedit.synthesis.worker_pool import LocalWorkers, WorkerPoolError, count_processes, ignore_report, worker_pool
from tests.synthesis import plain_jobs
from tests.synthesis.plain_jobs import DEADLINE_S, Job, is_running, wait_until, worker_pids

FAKE_TORCH = """\
threads = []
set_num_threads = threads.append

def get_num_threads():
    return threads[-1]
"""


@pytest.fixture(scope="module", autouse=True)
def light_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Worker processes import a fake torch and not pytest's program, both of which would take them seconds."""
    folder = tmp_path_factory.mktemp("fake")
    (folder / "torch.py").write_text(FAKE_TORCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)  # a new process has the same path
        patch.delattr(sys.modules["__main__"], "__file__", raising=False)  # a worker of pytest-xdist has none
        yield


@contextmanager
def pool_of(
    processes: int, folder: Path, report: Callable[[str, float], None] = ignore_report
) -> Iterator[Callable[[Mapping[str, Job]], Iterator[tuple[str, Any]]]]:
    """A pool of processes. None of them may be left after the block."""
    try:
        with worker_pool(LocalWorkers(processes=processes), partial(plain_jobs.build_work, folder), "cpu", report) as pool:
            yield pool
    finally:
        assert not [pid for pid in worker_pids(folder) - {os.getpid()} if is_running(pid)]
        assert not multiprocessing.active_children()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[ProcessGroup]:
    with local_processes.start(1, partial(plain_jobs.build_work, tmp_path), ignore_report) as group:
        yield group
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path: Path) -> None:
    rounds = [{f"shard-{n}": Job("square", n) for n in numbers} for numbers in (range(5), range(5, 8), ())]
    results, shares = [], []
    for processes in (1, 2):
        folder, finished = tmp_path / str(processes), Counter[str]()
        folder.mkdir()
        with pool_of(processes, folder, lambda name, share, finished=finished: finished.update({name: share})) as pool:
            results.append([dict(pool(jobs)) for jobs in rounds])
        shares.append(finished)
    expected = [{f"shard-{n}": n**2 for n in numbers} for numbers in (range(5), range(5, 8), ())]
    assert results == [expected, expected]
    assert shares[0] == shares[1] == {f"shard-{n}": 1.0 for n in range(8)}
    assert worker_pids(tmp_path / "1") == {os.getpid()}
    assert len(worker_pids(tmp_path / "2")) == 2
    assert os.getpid() not in worker_pids(tmp_path / "2")


@pytest.mark.slow
def test_a_result_that_nobody_read_is_not_taken_for_that_of_a_later_job(tmp_path: Path) -> None:
    with local_processes.start(2, partial(plain_jobs.build_work, tmp_path), ignore_report) as group:
        results = group.do({"shard-0": Job("square", 2), "shard-1": Job("square", 3, wait_for="go")})
        assert next(results) == ("shard-0", 4)
        del results  # while shard-1 is being made
        (tmp_path / "go").touch()
        assert dict(group.do({"shard-2": Job("square", 5), "shard-3": Job("square", 6)})) == {"shard-2": 25, "shard-3": 36}


@pytest.mark.slow
def test_jobs_begin_in_order_and_a_slow_job_delays_no_other(tmp_path: Path) -> None:
    jobs = {"slow": Job("square", 0, wait_for="done-3")} | {f"quick-{n}": Job("square", n) for n in (1, 2, 3)}
    with pool_of(2, tmp_path) as pool:
        names = [name for name, _ in pool(jobs)]
    assert names[:2] == ["quick-1", "quick-2"]
    assert {*names[2:]} == {"quick-3", "slow"}, "the slow job ends when quick-3 is done"


@pytest.mark.slow
def test_the_cores_are_shared_among_the_processes(tmp_path: Path) -> None:
    with pool_of(2, tmp_path) as pool:
        assert dict(pool({"shard-0": Job("count threads")})) == {"shard-0": max(1, available_cores() // 2)}


def test_one_gpu_has_this_process_unless_the_params_say_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with worker_pool(LocalWorkers(), partial(plain_jobs.build_work, tmp_path), "cuda") as pool:
        assert dict(pool({"shard-0": Job("square", 3)})) == {"shard-0": 9}
    assert worker_pids(tmp_path) == {os.getpid()}


def test_the_workers_of_a_stage_on_any_gpu_have_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    assert count_processes(LocalWorkers(), "cuda", 10**9) == 2
    assert [gpu_of_worker("cuda", n)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["2", "GPU-5", "2"]
    assert gpu_of_worker("cuda:1", 0) == gpu_of_worker("cpu", 0) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5,-1,3")
    assert count_processes(LocalWorkers(), "cuda", 10**9) == 2, "CUDA ignores what follows a wrong entry"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert count_processes(LocalWorkers(), "cuda", None) == 3
    assert gpu_of_worker("cuda", 2) == {"CUDA_VISIBLE_DEVICES": "2"}


@pytest.mark.slow
def test_a_failed_job_reaches_the_caller_at_once_and_ends_all_workers(tmp_path: Path) -> None:
    jobs = {"shard-0": Job("wait for ever", 0), "shard-1": Job("ValueError", 1), "shard-2": Job("square", 2)}
    with (
        pytest.raises(WorkerPoolError, match=r"in shard-1: ValueError: cannot do 1\nTraceback(.|\n)*in do_job"),
        pool_of(2, tmp_path) as pool,
    ):
        list(pool(jobs))
    assert not (tmp_path / "begun-2").exists()


@pytest.mark.parametrize("kind", ["EOFError", "BrokenPipeError"])
def test_an_error_of_a_job_is_not_taken_for_the_end_of_the_pipe(kind: str, one_process: ProcessGroup) -> None:
    with pytest.raises(WorkerFailedError, match=f"in shard-0: {kind}: cannot do 0"):
        list(one_process.do({"shard-0": Job(kind)}))


def test_an_error_of_this_project_explains_itself_without_a_traceback(one_process: ProcessGroup) -> None:
    with pytest.raises(WorkerFailedError, match=r"^in shard-0: cannot do 0$"):
        list(one_process.do({"shard-0": Job("ParamsError")}))


def test_a_worker_that_cannot_start_says_why_also_to_a_later_job() -> None:
    with local_processes.start(1, plain_jobs.build_nothing, ignore_report) as group:
        (process,) = multiprocessing.active_children()
        process.join(DEADLINE_S)
        with pytest.raises(WorkerFailedError, match="in shard-0: ValueError: no models here"):
            list(group.do({"shard-0": Job("square")}))


@pytest.mark.slow
def test_a_worker_that_is_killed_at_work_is_named_with_its_job(tmp_path: Path) -> None:
    jobs = {"shard-0": Job("wait for ever", 0), "shard-1": Job("die", 1)}
    with (
        pytest.raises(WorkerPoolError, match=r"the worker process of shard-1 died \(exit status -9;.*use fewer processes"),
        pool_of(2, tmp_path) as pool,
    ):
        list(pool(jobs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("MemoryError", FailureKind.MEMORY),
        ("die", FailureKind.MEMORY),
        ("BrokenPipeError", FailureKind.NETWORK),
        ("ValueError", FailureKind.OTHER),
    ],
)
def test_the_kind_of_a_failure_comes_from_the_worker(action: str, kind: FailureKind, tmp_path: Path) -> None:
    """A stage whose worker ran out of memory is tried again, one whose worker met a fault is not."""
    with pytest.raises(WorkerPoolError) as error, pool_of(2, tmp_path) as pool:
        list(pool({"shard-0": Job(action)}))
    assert error.value.kind is kind


@pytest.mark.parametrize("n_earlier_jobs", [0, 1])
def test_a_worker_that_was_killed_before_its_job_is_named_with_the_job(n_earlier_jobs: int, one_process: ProcessGroup) -> None:
    (process,) = multiprocessing.active_children()
    for number in range(n_earlier_jobs):
        assert dict(one_process.do({"shard-0": Job("square", number)})) == {"shard-0": 0}
    process.kill()
    process.join(DEADLINE_S)
    with pytest.raises(WorkerFailedError, match=r"the worker process of shard-1 died \(exit status -9;"):
        list(one_process.do({"shard-1": Job("square", 1)}))


@pytest.mark.slow
def test_an_exception_of_the_caller_ends_the_workers(tmp_path: Path) -> None:
    def use_pool() -> None:
        with pool_of(2, tmp_path) as pool:
            for _ in pool({"shard-0": Job("square", 0), "shard-1": Job("wait for ever", 1)}):
                raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        use_pool()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a busy process with its parent")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent = multiprocessing.get_context("spawn").Process(target=plain_jobs.keep_two_workers, args=(tmp_path,))
    parent.start()
    try:
        wait_until(lambda: (tmp_path / "done-0").exists() and (tmp_path / "begun-1").exists())
        pids = worker_pids(tmp_path)
        assert len(pids) == 2
        assert all(map(is_running, pids))
    finally:
        parent.kill()
        parent.join(DEADLINE_S)
    wait_until(lambda: not any(map(is_running, pids)))
