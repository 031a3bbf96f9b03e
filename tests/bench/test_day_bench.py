"""`bench/day.py` says that all is well only of a day that has ended."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Load = Callable[[str], ModuleType]


class Day:
    """A day whose servers start and stop."""

    def __init__(self, timeline: Any, interrupted: bool) -> None:
        self._timeline, self._interrupted = timeline, interrupted

    def bootstrap(self) -> None:
        with self._timeline.step("servers"):
            pass

    def end(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self.bootstrap()


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [False, True])
def test_all_is_well_after_the_end_alone(
    load_script: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, interrupted: bool
) -> None:
    script = load_script("day")

    @contextmanager
    def new_day(timeline: Any) -> Iterator[Day]:
        yield Day(timeline, interrupted)

    monkeypatch.setattr(script, "new_day", new_day)
    monkeypatch.setattr(script.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr("sys.argv", ["day.py", "--quick"])
    try:
        script.main()
    except KeyboardInterrupt:
        assert interrupted
    result = json.loads((tmp_path / "day.quick.json").read_text())
    assert result["all_ok"] is not interrupted
    assert result["steps_done"] == len(result["steps"]) == (1 if interrupted else 2)
