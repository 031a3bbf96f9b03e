"""Do fifty concurrent promotions leave one champion and the correct previous one, even if processes are killed?

`uv run python bench/promotions.py [--quick]` writes `bench/results/promotions.json`; its last line is the same JSON.

Several processes concurrently promote versions of one registry (SQLite): with `alias_moves.move_champion`, and like a simple
script, which reads the alias `champion`, then sets `previous` and `champion`. `promotions` counts successful promotions,
`failed` the others, and `chain_breaks` the successful ones that did not start from the champion set by the previous one: each is
a champion that was lost without a record. In the last part every second process is killed when one of its moves has the state
`moving`. `killed_in_move` counts the moves that were then begun but not done, and `completed_by_others` those of them that
another process completed; without any, the script fails and writes nothing. `repaired` counts those that were left to the
next command after all promotions, and `is_consistent` says whether aliases and history then agree. `seconds_per_promotion`
is the total time divided by the number of versions.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import command

PROMOTIONS, PROCESSES = 50, 10
QUICK_PROMOTIONS, QUICK_PROCESSES = 8, 4
POLL_S = 0.02
WORKER = """
import json, sys, time, traceback
from concurrent.futures import ThreadPoolExecutor
from emuedit.tracking import alias_moves, mlflow_client, registry
from mlflow.tracking import MlflowClient

registry.all_versions()
method, start, numbers = sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3])
time.sleep(max(0.0, start - time.time()))

def ours(number):
    move = alias_moves.move_champion(number, "bench", check=False)
    return move.before, number

def script(number):
    champion = registry.version_at("champion")
    before = champion.number if champion else None
    if before is not None:
        mlflow_client.client().set_registered_model_alias(registry.MODEL_NAME, "previous", str(before))
    mlflow_client.client().set_registered_model_alias(registry.MODEL_NAME, "champion", str(number))
    return before, number

def attempt(number):
    try:
        return {"ours": ours, "script": script}[method](number)
    except Exception:  # of MLflow or the database, which differ by method; one failure must not lose the other answers
        traceback.print_exc()
        return None

with ThreadPoolExecutor(len(numbers)) as pool:
    print(json.dumps(list(pool.map(attempt, numbers))))
"""


@contextmanager
def new_registry(n_versions: int) -> Iterator[Path]:
    """An MLflow database with `n_versions` versions of the model; sets MLFLOW_TRACKING_URI."""
    from emuedit.tracking import mlflow_client, registry

    folder = Path(tempfile.mkdtemp(prefix="emuedit-promotions-"))
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    client = mlflow_client.client()
    client.create_registered_model(registry.MODEL_NAME)
    for number in range(1, n_versions + 1):
        client.create_model_version(registry.MODEL_NAME, f"nowhere/{number}")
    yield folder
    shutil.rmtree(folder)


def start_workers(method: str, n_versions: int, n_processes: int) -> list["subprocess.Popen[str]"]:
    """Processes that promote all versions as simultaneously as possible."""
    groups = [list(range(1, n_versions + 1))[index::n_processes] for index in range(n_processes)]
    start = time.time() + 4 + 2 * n_processes  # each imports MLflow first
    arguments = [[sys.executable, "-c", WORKER, method, str(start), json.dumps(group)] for group in groups]
    return [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for words in arguments]


def read_moves(answers: list[str]) -> list[tuple[int | None, int]]:
    """(before, number) of every successful promotion. A failed one is null in its process's answer."""
    results = [result for answer in answers if answer for result in json.loads(answer)]
    return [(before, number) for before, number in filter(None, results)]


def count_chain_breaks(moves: list[tuple[int | None, int]]) -> int:
    """Number of promotions with a repeated `before`; in a chain every `before` occurs once."""
    return len(moves) - len({before for before, _ in moves})


def measure(method: str, n_versions: int, n_processes: int) -> dict[str, Any]:
    """All promotions concurrently, with one method."""
    from emuedit.tracking import alias_moves

    with new_registry(n_versions):
        workers = start_workers(method, n_versions, n_processes)
        start = time.time() + 4 + 2 * n_processes
        answers = [worker.communicate()[0] for worker in workers]
        seconds = time.time() - start
        moves = read_moves(answers)
        aliases = {alias: version.number if version else None for alias, version in alias_moves.current().items()}
        history = alias_moves.history() if method == "ours" else []
    result = {
        "promotions": len(moves), "failed": n_versions - len(moves), "chain_breaks": count_chain_breaks(moves),
        "seconds_per_promotion": round(max(seconds, 0.0) / n_versions, 3),
    }  # fmt: skip
    if history:
        ends = (history[-1].champion, history[-2].champion)
        result["is_consistent"] = (aliases["champion"], aliases["previous"]) == ends
    return result


def kill_in_moves(workers: list["subprocess.Popen[str]"]) -> list[int]:
    """Kill each process as soon as one of its moves has begun; returns the numbers of the moves that this left unfinished."""
    from emuedit.tracking import move_tickets

    def moving() -> list[tuple[str, int]]:
        """(process id, number) of the moves that have begun."""
        moves = [move for move in move_tickets.read_all() if move.state == move_tickets.MOVING]
        return [(move.process.partition(":")[0], move.number) for move in moves]

    running, unfinished = {str(worker.pid): worker for worker in workers}, list[int]()
    while any(worker.poll() is None for worker in running.values()):
        for process in {process for process, _ in moving()} & running.keys():
            worker = running.pop(process)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            unfinished += [number for owner, number in moving() if owner == process]
        time.sleep(POLL_S)
    return unfinished


def measure_kills(n_versions: int, n_processes: int) -> dict[str, Any]:
    """Every second process is killed during a move; then the next command runs."""
    from emuedit.tracking import alias_moves

    with new_registry(n_versions):
        workers = start_workers("ours", n_versions, n_processes)
        unfinished = kill_in_moves(workers[::2])
        for worker in workers:
            worker.communicate()
        n_killed = sum(worker.returncode == -signal.SIGKILL for worker in workers)
        repaired = alias_moves.repair()
        history, aliases = alias_moves.history(), alias_moves.current()
    moves = [move for move in history if move.state == "done"]
    champion, previous = (aliases[alias] for alias in ("champion", "previous"))
    ends = (champion.number if champion else None, previous.number if previous else None)
    is_chain = all(later.before == earlier.champion for earlier, later in itertools.pairwise(moves))
    completed = {move.number for move in moves} & set(unfinished)
    return {
        "killed_processes": n_killed, "killed_in_move": len(unfinished), "completed_by_others": len(completed),
        "promotions": len(moves), "repaired": len(repaired),
        "is_consistent": is_chain and ends == (moves[-1].champion, moves[-2].champion),
    }  # fmt: skip


def main() -> None:
    """Measure, write and print. Exits with status 1 if no move of a killed process was completed by another."""
    args = command.argument_parser(__doc__, quick="eight promotions of four processes").parse_args()
    sizes = (QUICK_PROMOTIONS, QUICK_PROCESSES) if args.quick else (PROMOTIONS, PROCESSES)
    figures = {"ours": measure("ours", *sizes), "script": measure("script", *sizes), "ours_killed": measure_kills(*sizes)}
    if not figures["ours_killed"]["completed_by_others"]:
        sys.exit(f"want a move of a killed process that another completed, got {figures['ours_killed']}; run it again")
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
