from pathlib import Path

import pytest

from emuedit.training.optim.optimization import Optimization
from tests.training.tiny_training import SETTINGS, train


@pytest.mark.slow
def test_slow_saves_are_made_less_often(cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of SD1.5 has 13.75 GB: saved every minute, it took a fifth to a half of the time."""
    now_s, saves = [0.0], []

    def look_at_clock() -> float:
        now_s[0] += 1.0
        return now_s[0]

    def save(optimization: Optimization, file: Path) -> None:
        saves.append(optimization.step)
        now_s[0] += 10.0

    monkeypatch.setattr("emuedit.training.loop.time.monotonic", look_at_clock)
    monkeypatch.setattr(Optimization, "save", save)
    train(cache_folder, tmp_path, SETTINGS.model_copy(update={"steps": 60, "eval_every_steps": 60, "save_every_s": 3.0}))
    assert saves[0] <= 3
    assert saves[1] - saves[0] > 20, "after twenty times the ten seconds of the first save; a step looks at the clock a few times"
    assert saves[-1] == 60
