"""One day of a team with servers of its own: does everything in docs/operations.md work, one after the other?

`uv run python bench/day.py [--quick]` writes `bench/results/day.json`, the timeline; its last line is the same JSON. A clone of
the committed project gets a small job (four tasks, a few captions), PostgreSQL where it is installed, MLflow, Prefect with a
worker, and an object store. Every step is made by the commands that a person or a schedule gives, and checked. The editors are
better or worse by the tasks that the data have, and by instructions of the wrong task. Ends at the first step that fails.
`--quick` only brings everything up and down. Linux only.
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
    root.chmod(0o755)  # PostgreSQL runs as a user of its own
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
    """A picture of the toy world."""
    from PIL import Image

    from toyworld.edits.exact_edits import build_edits

    Image.fromarray(build_edits("background", "held_out", 0, 1).before[0]).save(path)
    return path


def main() -> None:
    """The day, written and printed however far it came."""
    args = command.argument_parser(__doc__, quick="bring everything up and down").parse_args()
    timeline = Timeline()
    for number in (signal.SIGTERM, signal.SIGINT):  # the servers end with it, also where a shell made it ignore ctrl-c
        signal.signal(number, signal.default_int_handler)
    try:
        with new_day(timeline) as day:
            day.bootstrap()
            if not args.quick:
                day.schedule_fires()
                day.new_captions()
                day.nothing_changed()
                day.worse_model()
                day.lost_task()
                day.killed_worker()
                day.store_stops()
                day.rollback()
                day.second_machine(draw_picture(day.machine.path / "in.png"))
            day.end()
    finally:
        figures = {"steps_done": sum(row["ok"] for row in timeline.steps), "all_ok": all(row["ok"] for row in timeline.steps)}
        command.write_result(__file__, figures | {"steps": timeline.steps}, args.quick)


if __name__ == "__main__":
    main()
