"""What `bench/inversion.py` resumes from: finished entries of the same editor, settings and code, and no result file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

Load = Callable[[str], ModuleType]
ROOT = Path(__file__).resolve().parents[2]
ENTRIES = [("contour", "zero_shot", 30, 0), ("contour", "embedding", 30, 0)]


class Bench:
    """The benchmark in a temporary project, with a learner that only counts."""

    def __init__(self, script: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, read_output: Callable[[], str]) -> None:
        self.script, self.root, self._monkeypatch, self._read_output = script, root, monkeypatch, read_output
        self.runs: list[str] = []

    def learn(self, folder: Path, task: str, method: str, n: int, seed: int, quick: bool) -> tuple[dict[str, Any], np.ndarray]:
        self.runs.append(method)
        return {"success": len(self.runs) / 10, "n_edits": 32}, np.zeros((8, 64, 64, 3), np.uint8)

    def main(self, *options: str) -> dict[str, Any]:
        """Run the command; its result. `runs` are the methods that it learned with."""
        self.runs.clear()
        self._monkeypatch.setattr("sys.argv", ["inversion.py", "--editor", str(self.root / "editor"), *options])
        self.script.main()
        printed: dict[str, Any] = json.loads(self._read_output().splitlines()[-1])
        assert printed == json.loads(self.script.command.result_path("inversion", "--quick" in options).read_text())
        return printed


@pytest.fixture
def bench(
    load_script: Load, command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    script = load_script("inversion")
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    for file in ("editor/weights", "toyworld/edits/judge.py"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("first")
    bench = Bench(script, tmp_path, monkeypatch, lambda: capsys.readouterr().out)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(script, "run", bench.learn)
    monkeypatch.setattr(script, "plan", lambda quick: ENTRIES)
    monkeypatch.setattr(script, "draw_chart", lambda results, path: None)
    return bench


@pytest.mark.slow
def test_finished_entries_are_not_repeated_and_always_printed(bench: Bench) -> None:
    bench.script.command.result_path("inversion", False).write_text(
        json.dumps({"results": [{"task": t, "method": m, "examples": n, "seed": s, "success": 1.0} for t, m, n, s in ENTRIES]})
    )
    first = bench.main("--most", "1")
    assert bench.runs == ["zero_shot"], "the committed results are of some earlier code"
    assert [row["method"] for row in first["results"]] == ["zero_shot"]
    both = bench.main()
    assert bench.runs == ["embedding"]
    assert bench.main()["results"] == both["results"]
    assert not bench.runs
    assert both["success_at_30_examples"]["contour"]["zero_shot"] == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["editor/weights", "toyworld/edits/judge.py", "params.yaml"])
def test_another_editor_judge_or_setting_starts_again(bench: Bench, changed: str) -> None:
    bench.main()
    file = bench.root / changed
    text = file.read_text()
    file.write_text(text.replace("steps: 4", "steps: 5") if changed == "params.yaml" else "second")
    assert file.read_text() != text
    bench.main()
    assert bench.runs == ["zero_shot", "embedding"]


@pytest.mark.slow
def test_a_smoke_test_runs_everything_every_time(bench: Bench) -> None:
    for _ in range(2):
        bench.main("--quick")
        assert len(bench.runs) == len(ENTRIES)
