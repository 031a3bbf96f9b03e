"""What `bench/train.py` does if a trainer fails, and what the published script may not do."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import accelerate.tracking
import pytest

Load = Callable[[str], ModuleType]
MEASURED = {"samples_per_second": 2.0, "peak_memory_gib": 1.0}
FAILED = {"failed": "RuntimeError: no memory"}


def run_main(train: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, rows: dict[str, Any]) -> dict[str, Any]:
    """Run the command with these rows of its systems; its result."""
    script = folder / "script.py"
    script.touch()
    monkeypatch.setattr(train, "measure", lambda *arguments: {"systems": rows, **train.ratios(rows)})
    monkeypatch.setattr("sys.argv", ["train.py", "--quick", "--published", str(script), "--shapes", "toy"])
    train.main()
    result: dict[str, Any] = json.loads((folder / "train.quick.json").read_text())
    return result


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["published", "ours"])
def test_a_trainer_that_fails_leaves_the_former_result(
    load_script: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str
) -> None:
    train, rows = load_script("train"), {"published": MEASURED, "ours": MEASURED}
    result = run_main(train, monkeypatch, tmp_path, rows | {"ours, compiled": FAILED})
    assert result["samples_per_second_ratio"] == 1.0
    assert result["peak_memory_ratio"] is None, "`ours, small` was not measured"
    with pytest.raises(SystemExit, match=f"toy: {failing}: RuntimeError: no memory"):
        run_main(train, monkeypatch, tmp_path, rows | {failing: FAILED})
    assert json.loads((tmp_path / "train.quick.json").read_text()) == result


@pytest.mark.slow
def test_the_address_of_the_script_is_that_of_the_installed_version(
    load_script: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = load_script("train")
    address = f"/diffusers/v{metadata.version('diffusers')}/examples/instruct_pix2pix/train_instruct_pix2pix.py"
    monkeypatch.setattr("sys.argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        train.main()
    assert address in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["train.py", "--published", "missing"])
    with pytest.raises(SystemExit, match=address):
        train.main()


@pytest.mark.slow
def test_the_published_script_logs_to_no_tracker(load_script: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer, script, out = load_script("harness.published_trainer"), tmp_path / "script.py", tmp_path / "trackers"
    script.write_text(
        "import accelerate.tracking, pathlib\n"
        f"pathlib.Path({str(out)!r}).write_text(repr(accelerate.tracking.filter_trackers(['all'])))"
    )
    trackers = accelerate.tracking.get_available_trackers()
    assert "mlflow" in [str(tracker) for tracker in trackers]
    for name, value in {
        "accelerate.tracking._available_trackers": list(trackers), "emuedit.data.publish.read_folder": lambda *_: [],
        "datasets.load_dataset": None, "tqdm.auto.tqdm": __import__("tqdm.auto").auto.tqdm,
        "sys.argv": ["", str(script), str(tmp_path), str(out), "float32", "8", "4", "2", "64"],
    }.items():  # fmt: skip
        monkeypatch.setattr(name, value)
    trainer.main()
    assert out.read_text() == "[]"
