"""Options of `retrain` and of its flow that are refused before anything runs."""

from pathlib import Path

import pytest

from emuedit.config import ParamsError
from flows import retrain


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not refused finds no pipeline here."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("count", ["0", "-1", "two", ""])
def test_stages_side_by_side_are_counted_from_one(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        retrain.main(["--max-parallel", count])
    assert end.value.code == 2
    assert f"--max-parallel: want a number of stages from 1, got {count!r}" in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, -3])
def test_the_flow_refuses_no_stage_at_a_time(count: int) -> None:
    from flows import pipeline

    with pytest.raises(ParamsError, match=f"want max_parallel of at least 1 stage, got {count}; 1 runs"):
        pipeline.retrain.fn(max_parallel=count)
