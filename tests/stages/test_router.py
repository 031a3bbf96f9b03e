import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.config import load
from emuedit.data.publish import publish, read_summary, scratch_folder
from emuedit.data.records import Instruction
from emuedit.data.shards import write_shard
from emuedit.editor import task_predictor
from emuedit.stages import router as station
from emuedit.stages.router import Params, RouterError, run, split

ROOT = Path(__file__).parents[2]
WORDINGS = {"remove": ("remove the {}", "delete the {}"), "sketch": ("draw the lines of the {}", "sketch the {}")}
THINGS = ("star", "ring", "heart", "cross", "circle")


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """stats.jsonl is the truth; a server is not needed here."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)


def knobs(**changes: Any) -> Params:
    params = load(Params, "router", ROOT / "params.yaml")
    world = params.world.model_copy(update={"t5": str(ROOT / params.world.t5)})
    small = {"world": world, "device": "cpu", "epochs": 3, "batch": 16, "lr": 5e-3, "warmup_steps": 4, "held_out_share": 0.25}
    return params.model_copy(update=small | changes)


def instructions(root: Path, n: int = 60, tasks: tuple[str, ...] = ("sketch", "remove")) -> list[Instruction]:
    made = [
        Instruction(f"c{i}", task, WORDINGS[task][i % 2].format(THINGS[i % 5]), "a", "b", None, None, False, i, "w", "")
        for i in range(n)
        for task in tasks
    ]
    scratch = scratch_folder(root, "instructions", "f")
    write_shard(scratch / "shard-00000.parquet", made, Instruction)
    publish(scratch, root / station.IN, "instructions", {}, {})
    return made


def test_learns_what_words_ask_for(tmp_path: Path) -> None:
    instructions(tmp_path)
    summary = run(knobs(), tmp_path)
    out = tmp_path / station.OUT
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.95
    assert metrics["n"] == summary.counts["held_out"]
    assert summary.counts["trained"] + summary.counts["held_out"] == 120
    router = task_predictor.load(str(out))
    assert router.tasks == ("remove", "sketch")  # in the order of the table of tasks
    guesses = router.predict(["delete the circle", "draw the lines of the heart"])
    assert [guess.task for guess in guesses] == ["remove", "sketch"]
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line.get("metrics", {})] == [0, 1, 2]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(read_summary(out).shards)
    assert not list(out.glob(".state*"))


def test_captions_are_on_one_side_only(tmp_path: Path) -> None:
    some = [(f"c{i % 50}", f"text {i}", "remove") for i in range(200)]
    told, held = split(some, knobs())
    caption = {text: caption for caption, text, _ in some}
    assert {caption[text] for text, _ in told}.isdisjoint({caption[text] for text, _ in held})
    assert 20 <= len(held) <= 80


def test_a_stopped_training_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instructions(tmp_path)
    run(knobs(), tmp_path)
    whole = (tmp_path / station.OUT / "model.safetensors").read_bytes()
    epochs: list[int] = []

    class Stopping(station.Tracker):
        def log(self, step: int, **metrics: float) -> None:
            if step == 1 and 1 not in epochs:
                epochs.append(1)
                raise KeyboardInterrupt
            epochs.append(step)
            super().log(step, **metrics)

    monkeypatch.setattr(station, "Tracker", Stopping)
    with pytest.raises(KeyboardInterrupt):
        run(knobs(), tmp_path)
    run(knobs(), tmp_path)
    assert epochs == [0, 1, 1, 2, 3]  # 3: the metrics at the end
    assert (tmp_path / station.OUT / "model.safetensors").read_bytes() == whole


def test_measures_per_task_and_on_new_texts() -> None:
    class Fixed:
        tasks = ("remove", "sketch")

        def probabilities(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[0.9, 0.1] if text.startswith("r") else [0.2, 0.8] for text in texts])

    held = [("r1", "remove"), ("r2", "remove"), ("s1", "remove"), ("s2", "sketch")]
    found = station.measure(Fixed(), held, {"r1", "s2"})  # type: ignore[arg-type]
    assert found["accuracy"] == 0.75
    assert found["accuracy_new_texts"] == 0.5
    assert found["tasks"] == {"remove": pytest.approx(2 / 3), "sketch": 1.0}
    assert found["confusion"] == {"remove": {"remove": 2, "sketch": 1}, "sketch": {"sketch": 1}}
    assert found["calibration_error"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
    assert station.measure(Fixed(), held[:1], {"r1"})["accuracy_new_texts"] is None  # type: ignore[arg-type]


def test_one_task_is_none_to_tell(tmp_path: Path) -> None:
    instructions(tmp_path, tasks=("remove",))
    with pytest.raises(RouterError, match=r"want instructions of two tasks.*got \['remove'\]"):
        run(knobs(), tmp_path)
