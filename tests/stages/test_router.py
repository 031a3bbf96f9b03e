import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emuedit.data.publish import publish, read_summary, scratch_folder
from emuedit.data.records import Instruction
from emuedit.data.shards import write_shard
from emuedit.editor import task_predictor
from emuedit.stages import router
from emuedit.stages.router import RouterError, RouterParams, run, split
from tests.stages.workspace import Workspace, check_stop_message, load_params

WORDINGS = {"remove": ("remove the {}", "delete the {}"), "sketch": ("draw the lines of the {}", "sketch the {}")}
OBJECTS = ("star", "ring", "square", "cross", "circle")
SMALL = {"device": "cpu", "epochs": 3, "batch_size": 16, "lr": 5e-3, "warmup_steps": 4, "held_out_share": 0.25}

pytestmark = [pytest.mark.usefixtures("no_mlflow"), pytest.mark.timeout(300)]


def make_params(**changes: Any) -> RouterParams:
    return load_params(RouterParams, "router", **SMALL | changes)


def publish_instructions(root: Path, n_captions: int = 60, tasks: tuple[str, ...] = ("sketch", "remove")) -> None:
    instructions = [
        Instruction(f"c{i}", task, WORDINGS[task][i % 2].format(OBJECTS[i % 5]), "a", "b", None, None, False, i, "w", "")
        for i in range(n_captions)
        for task in tasks
    ]
    scratch = scratch_folder(root, "instructions", "f")
    write_shard(scratch / "shard-00000.parquet", instructions, Instruction)
    publish(scratch, root / router.IN, "instructions", {}, {})


def test_the_task_of_an_instruction_is_learned(tmp_path: Path) -> None:
    publish_instructions(tmp_path)
    summary = run(make_params(), tmp_path)
    out = tmp_path / router.OUT
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.95
    assert metrics["n"] == summary.counts["held_out"]
    assert summary.counts["correct"] == round(metrics["accuracy"] * metrics["n"])
    assert summary.counts["trained"] + summary.counts["held_out"] == 120
    predictor = task_predictor.load(str(out))
    assert predictor.tasks == ("remove", "sketch")  # in the order of the table of tasks
    predictions = predictor.predict(["delete the circle", "draw the lines of the square"])
    assert [prediction.task for prediction in predictions] == ["remove", "sketch"]
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line.get("metrics", {})] == [0, 1, 2]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(read_summary(out).shards)
    assert not list(out.glob(".state*"))


def test_a_caption_is_trained_on_or_held_out_never_both() -> None:
    instructions = [(f"c{i % 50}", f"text {i}", "remove") for i in range(200)]
    training, held_out = split(instructions, make_params())
    caption = {text: caption for caption, text, _ in instructions}
    assert {caption[text] for text, _ in training}.isdisjoint({caption[text] for text, _ in held_out})
    assert 20 <= len(held_out) <= 80


def test_an_interrupted_training_resumes_after_the_last_epoch_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_instructions(tmp_path)
    run(make_params(), tmp_path)
    uninterrupted = (tmp_path / router.OUT / "model.safetensors").read_bytes()
    epochs: list[int] = []

    class InterruptedTracker(router.Tracker):
        def log(self, step: int, **metrics: float) -> None:
            is_first_time = step not in epochs
            epochs.append(step)
            if step == 1 and is_first_time:
                raise KeyboardInterrupt
            super().log(step, **metrics)

    monkeypatch.setattr(router, "Tracker", InterruptedTracker)
    with pytest.raises(KeyboardInterrupt):
        run(make_params(), tmp_path)
    run(make_params(), tmp_path)
    assert epochs == [0, 1, 1, 2, 3]  # 3: the metrics at the end
    assert (tmp_path / router.OUT / "model.safetensors").read_bytes() == uninterrupted


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_terminated_process_resumes_after_the_last_epoch_with_the_same_weights(
    make_workspace: Callable[..., Workspace],
) -> None:
    stopped, uninterrupted = (make_workspace(name, router=SMALL | {"epochs": 12}) for name in ("stopped", "uninterrupted"))
    for workspace in (stopped, uninterrupted):
        publish_instructions(workspace.folder)
    process = stopped.start("router")
    process.wait_until(lambda: stopped.scratch_files("router", ".state.pt"))
    status, output = process.stop(signal.SIGTERM)
    check_stop_message("router", signal.SIGTERM, status, output)
    assert not (stopped.folder / router.OUT).exists()
    (state,) = stopped.scratch_files("router", ".state.pt")
    steps_per_epoch, n_epochs = -(-92 // 16), 12
    step = torch.load(state, weights_only=True)["step"]
    assert 0 < step < n_epochs * steps_per_epoch
    stopped.run("router")
    uninterrupted.run("router")
    weights = [(workspace.folder / router.OUT / "model.safetensors").read_bytes() for workspace in (stopped, uninterrupted)]
    assert weights[0] == weights[1]
    lines = [json.loads(line) for line in (stopped.folder / router.OUT / "stats.jsonl").read_text().splitlines()]
    epochs = [line["step"] for line in lines if "loss" in line.get("metrics", {})]
    assert sorted(set(epochs)) == list(range(n_epochs))
    assert len(epochs) <= n_epochs + 1, "at most the epoch after the last saved one is repeated"


def test_accuracy_is_measured_per_task_and_on_new_texts() -> None:
    class FixedPredictor:
        tasks = ("remove", "sketch")

        def probabilities(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[0.9, 0.1] if text.startswith("r") else [0.2, 0.8] for text in texts])

    held_out = [("r1", "remove"), ("r2", "remove"), ("s1", "remove"), ("s2", "sketch")]
    metrics = router.measure(FixedPredictor(), held_out, {"r1", "s2"})  # type: ignore[arg-type]
    assert metrics["accuracy"] == 0.75
    assert metrics["accuracy_new_texts"] == 0.5
    assert metrics["tasks"] == {"remove": pytest.approx(2 / 3), "sketch": 1.0}
    assert metrics["confusion"] == {"remove": {"remove": 2, "sketch": 1}, "sketch": {"sketch": 1}}
    assert metrics["calibration_error"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
    assert router.measure(FixedPredictor(), held_out[:1], {"r1"})["accuracy_new_texts"] is None  # type: ignore[arg-type]


def test_instructions_of_one_task_are_an_error(tmp_path: Path) -> None:
    publish_instructions(tmp_path, tasks=("remove",))
    with pytest.raises(RouterError, match=r"want instructions of two tasks.*got \['remove'\]"):
        run(make_params(), tmp_path)
