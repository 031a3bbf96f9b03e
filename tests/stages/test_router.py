import dataclasses
import gc
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from emuedit.data.publish import STATS_FILE, Summary, logs_folder, read_folder, read_summary
from emuedit.data.records import Instruction
from emuedit.data.shards import write_shard
from emuedit.predictor import new_tasks, task_predictor
from emuedit.predictor.cross_fitting import OUT_OF_FOLD, Example, fold_of
from emuedit.predictor.task_reassignment import predict_tasks
from emuedit.stages import router
from emuedit.stages.router import RouterError, run
from emuedit.training.optim.lr_schedule import LrSchedule
from tests.stages.small_router import FRAMES, OBJECTS, SMALL, make_params, publish_instructions, publish_little
from tests.stages.workspace import Workspace, check_stop_message, hide_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_mlflow"), pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Training:
    """A run of the stage in a folder, and the texts that its T5s and its n-gram classifiers were trained on: of the folds, then
    the published ones."""

    root: Path
    summary: Summary
    texts: list[set[str]]
    ngram_texts: list[set[str]]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    root = tmp_path_factory.mktemp("router")
    params = publish_little(root, n_captions=60, texts_per_kind=8, epochs=6)
    texts: list[set[str]] = []
    ngram_texts: list[set[str]] = []
    fit, fit_ngrams = router.PredictorTraining._fit, router.fit_ngrams

    def record(self: Any, predictor: Any, examples: list[Example], left_out: int | None) -> None:
        texts.append({example.text for example in examples})
        fit(self, predictor, examples, left_out)

    def record_ngrams(examples: list[Example], tasks: list[str]) -> Any:
        ngram_texts.append({example.text for example in examples})
        return fit_ngrams(examples, tasks)

    with pytest.MonkeyPatch.context() as patch:
        hide_mlflow(patch, tmp_path_factory.mktemp("no-mlflow"))
        patch.setattr(router.PredictorTraining, "_fit", record)
        patch.setattr(router, "fit_ngrams", record_ngrams)
        return Training(root, run(params, root), texts, ngram_texts)


def test_an_epoch_has_half_as_many_other_texts_as_instructions_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = publish_little(tmp_path, n_captions=8, texts_per_kind=10, epochs=2)
    instructions = {row.text for row in read_folder(tmp_path / router.IN, Instruction)}
    seen: list[list[str]] = []
    fit, vary = router.PredictorTraining._fit, router.vary

    def record(self: Any, *arguments: Any) -> None:
        seen.append([])
        fit(self, *arguments)

    def record_text(text: str, *noise: Any) -> str:
        seen[-1].append(text)
        return vary(text, *noise)

    monkeypatch.setattr(router.PredictorTraining, "_fit", record)
    monkeypatch.setattr(router, "vary", record_text)
    run(params, tmp_path)
    n_others = [sum(text not in instructions for text in texts) for texts in seen]
    per_epoch = [(len(texts) - n) // 2 for texts, n in zip(seen, n_others, strict=True)]
    assert n_others == [2 * (n // 2) for n in per_epoch], "in two epochs"
    assert len(set(seen[-1]) - instructions) > 8, "another sample in each epoch"


def test_the_task_of_an_instruction_is_learned(training: Training) -> None:
    summary, out = training.summary, training.root / router.OUT
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["n"] == summary.counts["trained"] == 120
    assert metrics["accuracy"] > 0.85, "of wordings that were not trained on"
    assert summary.counts["correct"] == round(metrics["accuracy"] * 120)
    assert summary.counts["calibration_error_percent"] == round(100 * metrics["calibration_error"])
    predictor = task_predictor.load(str(out))
    assert predictor.tasks == ("remove", "sketch")  # in the order of the table of tasks
    predictions = predictor.predict(["remove the circle", "sketch the square"])
    assert [prediction.task for prediction in predictions] == ["remove", "sketch"]
    assert (predictor.temperature, predictor.min_support) == (metrics["temperature"], metrics["min_support"])
    assert predictor.ngrams is not None
    assert predictor.ngram_weight == metrics["ngram_weight"] > 0
    assert metrics["min_support"] > 0
    assert metrics["refused_instructions"] < 0.2 < 0.5 < metrics["refused_non_instructions"], "by the threshold of the other fold"
    lines = [json.loads(line) for line in (logs_folder(training.root, "router") / STATS_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line.get("metrics", {})] == [0, 1, 2, 3, 4, 5]
    assert {"config.json", "model.safetensors", "tokenizer.json", OUT_OF_FOLD} <= set(read_summary(out).shards)
    assert not list(out.glob(".*"))
    assert new_tasks.KNOWN_FEATURES in read_summary(out).shards
    stored = new_tasks.read_known_features(out)
    assert stored is not None
    first = predictor.features(sorted(predictor.known_instructions["no_edit"])[:1])
    torch.testing.assert_close(stored.values[:1].float(), first, rtol=2e-3, atol=2e-3)


def test_gibberish_is_refused(training: Training) -> None:
    predictor = task_predictor.load(str(training.root / router.OUT))
    predictions = predictor.predict(["qwgrt plkj zzx", "was kostet das Brot?", "", "remove the star", "please sketch the ring"])
    assert [prediction.refused for prediction in predictions] == [True, True, True, False, False]


def test_predictions_for_reassignment_come_from_a_model_that_was_not_trained_on_the_wording(training: Training) -> None:
    table = pq.read_table(training.root / router.OUT / OUT_OF_FOLD)
    texts, folds = table["text"].to_pylist(), table["fold"].to_pylist()
    *fold_models, published = training.texts
    assert len(fold_models) == 2
    assert training.ngram_texts == training.texts, "both classifiers have the same folds"
    assert set(texts) <= published
    for text, fold in zip(texts, folds, strict=True):
        assert text not in fold_models[fold]
        assert text in fold_models[1 - fold]
    by_wording = {text.replace(name, "_"): fold for text, fold in zip(texts, folds, strict=True) for name in text.split()}
    for name in OBJECTS:
        same = {fold for text, fold in zip(texts, folds, strict=True) if text == f"remove the {name}"}
        assert same <= {by_wording["remove the _"]}, "a wording is in one fold, whatever object it names"


def test_a_wrong_label_is_corrected_by_the_models_that_did_not_see_it(tmp_path: Path) -> None:
    """One wording is labelled wrongly throughout, and the published model is trained on that."""
    run(publish_little(tmp_path, n_captions=60, wrong=FRAMES[3], epochs=6), tmp_path)
    text = FRAMES[3].format("remove", "cross")
    known_tasks, p = predict_tasks([text], tmp_path / router.OUT, tmp_path / "cache")
    assert known_tasks[p[0].argmax()] == "remove"
    labels = {row.text: row.task for row in read_folder(tmp_path / router.IN, Instruction)}
    assert labels[text] == "sketch"


def test_no_record_is_in_memory_while_models_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TrainingStarts(Exception):  # noqa: N818 - not an error
        pass

    def stop(self: Any, fold: int, examples: list[Example]) -> None:
        assert len(examples) > 24
        raise TrainingStarts(sum(type(thing) is Instruction for thing in gc.get_objects()))

    params = publish_little(tmp_path)
    gc.collect()
    before = sum(type(thing) is Instruction for thing in gc.get_objects())
    monkeypatch.setattr(router.PredictorTraining, "fold_logits", stop)
    with pytest.raises(TrainingStarts) as started:
        run(params, tmp_path)
    assert started.value.args[0] <= before


def test_an_interrupted_training_resumes_after_the_last_epoch_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = publish_little(tmp_path)
    run(params, tmp_path)
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
        run(params, tmp_path)
    run(params, tmp_path)
    assert epochs == [0, 1, 1, 2, 0, 1, 2, 0, 1, 2, 3]  # two folds and the published model; 3: the metrics at the end
    assert (tmp_path / router.OUT / "model.safetensors").read_bytes() == uninterrupted


@pytest.mark.timeout(400)
@pytest.mark.long
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
    n_epochs = 12
    step = torch.load(state, weights_only=True)["step"]
    assert step > 0
    stopped.run("router")
    uninterrupted.run("router")
    files = [read_summary(workspace.folder / router.OUT).shards for workspace in (stopped, uninterrupted)]
    assert files[0] == files[1], "of weights and all else"
    lines = [json.loads(line) for line in (logs_folder(stopped.folder, "router") / STATS_FILE).read_text().splitlines()]
    epochs = [line["step"] for line in lines if "loss" in line.get("metrics", {})]
    assert sorted(set(epochs)) == list(range(n_epochs))
    assert len(epochs) <= n_epochs + 1, "at most the epoch after the last saved one is repeated"


def test_instructions_of_one_task_are_an_error(tmp_path: Path) -> None:
    publish_instructions(tmp_path, tasks=("remove",))
    with pytest.raises(RouterError, match=r"want instructions of two tasks.*got \['remove'\]"):
        run(make_params(), tmp_path)


@pytest.fixture
def measured_labels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the examples that the predictor is calibrated with; no T5 is trained."""
    labels: list[str] = []
    cross_fit = router.cross_fit

    def record(predictor: Any, experts: torch.Tensor, examples: list[Example], *others: Any) -> Any:
        labels.extend(example.label for example in examples)
        return cross_fit(predictor, experts, examples, *others)

    monkeypatch.setattr(router, "cross_fit", record)
    monkeypatch.setattr(router.PredictorTraining, "_fit", lambda *_: None)
    return labels


def test_a_task_with_one_fold_of_wordings_is_left_out_of_calibration(
    tmp_path: Path, measured_labels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    params = publish_little(tmp_path)
    shard = tmp_path / router.IN / "shard-00000.parquet"
    rows = list(read_folder(tmp_path / router.IN, Instruction))
    rows = [dataclasses.replace(row, text="show me outlines") if row.task == "sketch" else row for row in rows]
    rows.append(dataclasses.replace(rows[-1], task="remove", text="show me outlines"))
    write_shard(shard, rows, Instruction)
    summary = run(params, tmp_path)
    assert set(measured_labels) == {"remove", "no_edit"}
    assert "want wordings of every task in two folds or more, got a single one for sketch; they are" in capsys.readouterr().out
    n_measured = len({row.text for row in rows if row.task == "remove"}) - 1
    out_of_fold = pq.read_table(tmp_path / router.OUT / OUT_OF_FOLD)
    assert len(out_of_fold) == n_measured
    assert "show me outlines" not in out_of_fold["text"].to_pylist(), "the published model predicts it in the stage dataset"
    metrics = json.loads((tmp_path / router.OUT / "metrics.json").read_text())
    assert metrics["n"] == len(rows) // 2
    assert summary.counts["trained"] == len(rows)
    assert summary.counts["correct"] == round(metrics["accuracy"] * metrics["n"])


def test_tasks_that_all_have_one_fold_are_an_error(tmp_path: Path) -> None:
    params = publish_little(tmp_path)
    other = next(text for text in map(str, range(9)) if fold_of(text, 2) != fold_of("outlines", 2))
    texts = {"sketch": "outlines", "remove": other}
    rows = [dataclasses.replace(row, text=texts[row.task]) for row in read_folder(tmp_path / router.IN, Instruction)]
    write_shard(tmp_path / router.IN / "shard-00000.parquet", rows, Instruction)
    with pytest.raises(RouterError, match=r"wordings in a single fold of \['remove', 'sketch'\].*; add captions or wordings"):
        run(params, tmp_path)


def test_the_rate_rises_in_a_tenth_of_the_steps_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedules: list[LrSchedule] = []

    def record(*arguments: Any, **settings: Any) -> LrSchedule:
        schedules.append(LrSchedule(*arguments, **settings))
        return schedules[-1]

    monkeypatch.setattr(router, "LrSchedule", record)
    run(publish_little(tmp_path, warmup_steps=30), tmp_path)
    assert len(schedules) == 3
    assert all(0 < max(map(schedule.rate, range(schedule.steps))) >= 0.8 * schedule.lr for schedule in schedules)


def test_too_few_wordings_for_the_folds_are_an_error(tmp_path: Path) -> None:
    publish_instructions(tmp_path, n_captions=1)
    with pytest.raises(RouterError, match="and wordings for 40 folds; got"):
        run(make_params(folds=40), tmp_path)
