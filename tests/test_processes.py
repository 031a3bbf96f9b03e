"""How processes start and end: the environment, the exit, and workers that are forked from a server with imported modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emuedit import processes
from emuedit.processes import available_cores, keep_compiled_modules, memory_capacity, start_method

SLOW_MODULE = """
import os, time
time.sleep(0.5)
IMPORTED_BY = os.getpid()
"""
WORKERS = """
import os, signal, multiprocessing
from multiprocessing import forkserver
from emuedit import processes

def answer(queue, environment):
    processes.begin_worker(1, environment)
    import slow_module
    queue.put((os.getpid(), slow_module.IMPORTED_BY, os.environ.get("SET_LATER")))

if __name__ == "__main__":
    processes.prepare_workers("cpu", ["slow_module"])
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGINT)  # ctrl-c reaches the whole process group
    os.environ["SET_LATER"] = "yes"
    context = multiprocessing.get_context(processes.start_method("cpu"))
    queue = context.Queue()
    workers = [context.Process(target=answer, args=(queue, dict(os.environ))) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=60) for _ in workers]
    print(len({pid for pid, _, _ in answers}), len({pid for _, pid, _ in answers} - {pid for pid, _, _ in answers}))
    print(*{value for _, _, value in answers}, len({os.getpid()} & {pid for _, pid, _ in answers}))
    processes.exit_process(0)
"""
LEAVING = """
import atexit
from emuedit import processes

class TakenApart:
    def __del__(self):
        print("taken apart")

kept = TakenApart()
atexit.register(print, "exit handler")
print("buffered", end=", ")
processes.exit_process(3)
"""
HELP = """
import argparse, sys
from emuedit import processes

processes.open_missing_streams()
print(f"{sys.stdout.isatty()} {sys.stderr.isatty()}", file=sys.stderr)
processes.run_and_exit(lambda: argparse.ArgumentParser("tool").parse_args(WORDS))
"""
CHILD = """
import subprocess, sys
from emuedit import processes

processes.open_missing_streams()
subprocess.run([sys.executable, "-S", "-c", "import sys; print(sys.stdout is None, file=sys.stderr)"])
"""
LEAVING_THREAD = """
import atexit, threading, time
from emuedit import processes

def end_later():
    time.sleep(0.2)
    print("thread", end=", ")

atexit.register(print, "exit handler")
threading.Thread(target=end_later).start()
processes.exit_process(0, wait_for_threads=WAITS)
"""


def run_python(code: str, folder: Path, **options: object) -> "subprocess.CompletedProcess[str]":
    script = folder / "script.py"
    script.write_text(code)
    (folder / "slow_module.py").write_text(SLOW_MODULE)
    (folder / "torch.py").write_text("def set_num_threads(n): pass")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())])}
    return subprocess.run([sys.executable, script], env=environment, text=True, stderr=subprocess.PIPE, check=False, **options)


def test_modules_are_compiled_once_where_the_environment_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    keep_compiled_modules()
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ
    assert not sys.dont_write_bytecode


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 6), ("250000 100000", 3), ("50000 100000", 1), ("900000 100000", 6), (None, 6)]
)
def test_cores_are_limited_by_the_quota_of_a_container(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cores() == cores


def test_memory_is_limited_by_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CGROUP", tmp_path)
    physical = memory_capacity()
    for limit, expected in (("max", physical), ("3000000", 3_000_000), (str(2**60), physical)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert memory_capacity() == expected


def test_a_process_leaves_after_its_exit_handlers_and_without_taking_modules_apart(tmp_path: Path) -> None:
    process = run_python(LEAVING, tmp_path, stdout=subprocess.PIPE)
    assert (process.returncode, process.stdout, process.stderr) == (3, "buffered, exit handler\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(("waits", "output"), [("False", "exit handler\n"), ("True", "thread, exit handler\n")])
def test_a_process_waits_for_its_threads_on_request(tmp_path: Path, waits: str, output: str) -> None:
    process = run_python(LEAVING_THREAD.replace("WAITS", waits), tmp_path, stdout=subprocess.PIPE)
    assert (process.returncode, process.stdout, process.stderr) == (0, output, "")


def test_a_process_whose_reader_has_ended_leaves_without_a_trace(tmp_path: Path) -> None:
    source, sink = os.pipe()
    os.close(source)
    process = run_python(LEAVING, tmp_path, stdout=sink)
    os.close(sink)
    assert (process.returncode, process.stderr) == (3, "")


def test_output_that_cannot_be_written_is_one_line_and_a_failure(tmp_path: Path) -> None:
    for code, status in ((LEAVING, 3), (LEAVING.replace("exit_process(3)", "exit_process(0)"), 1)):
        with Path("/dev/full").open("w") as sink:
            process = run_python(code, tmp_path, stdout=sink)
        line = "want an output that can be written, got: No space left on device; write it elsewhere\n"
        assert (process.returncode, process.stderr) == (status, line)


@pytest.mark.slow
def test_streams_that_the_caller_has_closed_are_no_error(tmp_path: Path) -> None:
    process = run_python(LEAVING, tmp_path, preexec_fn=lambda: os.close(1))
    assert (process.returncode, process.stderr) == (3, "")
    process = run_python(HELP.replace("WORDS", "['-h']"), tmp_path, preexec_fn=lambda: os.close(1))
    assert (process.returncode, process.stderr) == (0, "False False\n")
    process = run_python(HELP.replace("WORDS", "['-h']"), tmp_path, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))
    assert process.returncode == 0
    assert process.stdout.startswith("usage: tool")


@pytest.mark.slow
def test_children_of_a_process_whose_streams_the_caller_has_closed_have_streams(tmp_path: Path) -> None:
    process = run_python(CHILD, tmp_path, preexec_fn=lambda: os.close(1))
    assert (process.returncode, process.stderr) == (0, "False\n")


@pytest.mark.slow
def test_the_help_is_no_error_if_its_reader_has_ended_and_wrong_arguments_are(tmp_path: Path) -> None:
    """`emuedit --help | head` ended with status 120 and "Exception ignored"."""
    source, sink = os.pipe()
    os.close(source)
    process = run_python(HELP.replace("WORDS", "['-h']"), tmp_path, stdout=sink)
    os.close(sink)
    assert (process.returncode, process.stderr) == (0, "False False\n")
    process = run_python(HELP.replace("WORDS", "['--other']"), tmp_path)
    assert process.returncode == 2
    assert "unrecognized arguments: --other" in process.stderr


@pytest.mark.slow
def test_workers_of_a_cpu_start_with_what_the_fork_server_imported_and_with_the_environment_of_now(tmp_path: Path) -> None:
    process = run_python(WORKERS, tmp_path, stdout=subprocess.PIPE)
    n_workers, n_servers, later, n_parents = process.stdout.split()
    assert (n_workers, n_servers, later, n_parents) == ("2", "1", "yes", "0"), process.stderr
    assert process.stderr == ""


@pytest.mark.parametrize(("device", "method"), [("cpu", "forkserver"), ("cuda", "spawn"), ("cuda:1", "spawn"), ("mps", "spawn")])
def test_a_worker_that_computes_on_a_gpu_is_not_forked(device: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert start_method(device) == method
    monkeypatch.setattr("sys.platform", "darwin")
    assert start_method(device) == "spawn"
