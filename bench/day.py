"""A day of a team with its own servers: does everything in docs/operations.md work in sequence?

`uv run python bench/day.py [--quick]` writes `bench/results/day.json`, the timeline; its last line is the same JSON. A clone of
the committed project gets a small job (four tasks, a few captions), PostgreSQL if it is installed, MLflow, Prefect with a
worker, and an object store. Every step runs the commands of a person or a schedule, and is checked. Editors get better or worse
by the tasks in the data, and by instructions of the wrong task. Ends at the first step that fails; `all_ok` is true only for a
day that ended with every step done. `--quick` only starts and stops everything, in a minute and a half. Linux only.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness import command
from harness.team_day import Day
from harness.team_machine import Machine, ObjectStore, Timeline


@contextmanager
def new_day(timeline: Timeline) -> Iterator[Day]:
    """A machine with an object store and a clone; ended and deleted afterwards."""
    root = Path(tempfile.mkdtemp(prefix="emuedit-day-"))
    root.chmod(0o755)  # PostgreSQL runs as a separate user
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        store = ObjectStore(root / "store")
        stack.callback(store.end)
        machine = Machine(root / "team", store.variables)
        team = machine.clone(command.ROOT, "emuedit")
        day = Day(machine, team, store, timeline)
        stack.callback(lambda: team.run("emuedit", "down"))
        yield day


def draw_picture(path: Path) -> Path:
    """Write an image of the toy world."""
    from PIL import Image

    from toyworld.edits.exact_edits import build_edits

    Image.fromarray(build_edits("background", "held_out", 0, 1).before[0]).save(path)
    return path


def main() -> None:
    """Run the day; write and print the timeline even after a failure."""
    args = command.argument_parser(__doc__, quick="start and stop everything").parse_args()
    timeline, has_ended = Timeline(), False
    for number in (signal.SIGTERM, signal.SIGINT):  # stops the servers on these signals, even if the shell made it ignore ctrl-c
        signal.signal(number, signal.default_int_handler)
    try:
        with new_day(timeline) as day:
            day.bootstrap()
            if not args.quick:
                day.schedule_fires()
                day.lost_task()
                day.new_captions()
                day.nothing_changed()
                day.worse_model()
                day.killed_worker()
                day.store_stops()
                day.rollback()
                day.second_machine(draw_picture(day.machine.path / "in.png"))
            day.end()
        has_ended = True
    finally:
        n_done = sum(row["ok"] for row in timeline.steps)
        figures = {"steps_done": n_done, "all_ok": has_ended and n_done == len(timeline.steps)}
        command.write_result(__file__, figures | {"steps": timeline.steps}, args)


if __name__ == "__main__":
    main()
