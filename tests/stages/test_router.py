import gc
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from emuedit.data.publish import STATS_FILE, Summary, logs_folder, publish, read_folder, read_summary, scratch_folder
from emuedit.data.records import Instruction
from emuedit.data.shards import write_shard
from emuedit.predictor import new_tasks, task_predictor
from emuedit.predictor.cross_fitting import OUT_OF_FOLD
from emuedit.predictor.non_instructions import NON_INSTRUCTIONS, load_non_instructions
from emuedit.predictor.task_reassignment import predict_tasks
from emuedit.stages import MEMORY_ENV, router
from emuedit.stages.router import Example, RouterError, RouterParams, run
from tests.repository import ROOT
from tests.stages.workspace import Workspace, check_stop_message, hide_mlflow, load_params

FRAMES = ("{} the {}", "please {} the {}", "{} the {} now", "can you {} the {}", "I want to {} the {}", "{} the {} for me please")
OBJECTS = ("star", "ring", "square", "cross", "circle")
SMALL = {
    "device": "cpu", "epochs": 3, "batch_size": 16, "lr": 5e-3, "warmup_steps": 4, "folds": 2, "non_instruction_repeats": 1,
}  # fmt: skip

T5 = ROOT / "toyworld/weights/t5"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_mlflow"), pytest.mark.timeout(300)]


def make_params(**changes: Any) -> RouterParams:
    return load_params(RouterParams, "router", **SMALL | changes)


def publish_instructions(
    root: Path, n_captions: int = 60, tasks: tuple[str, ...] = ("sketch", "remove"), wrong: str | None = None
) -> None:
    """`wrong`: the frame whose instructions all have the other label."""
    others = dict(zip(tasks, reversed(tasks), strict=True))
    instructions = []
    for i, frame, name in zip(range(n_captions), cycle(FRAMES), cycle(OBJECTS), strict=False):
        for task in tasks:
            label = others[task] if frame == wrong else task
            text = frame.format(task, name)
            instructions.append(Instruction(f"c{i}", label, text, f"a {name}", "b", None, None, False, i, "w", ""))
    scratch = scratch_folder(root, "instructions", "f")
    write_shard(scratch / "shard-00000.parquet", instructions, Instruction)
    publish(scratch, root / router.IN, "instructions", {}, {})


def publish_little(
    root: Path, n_captions: int = 12, texts_per_kind: int = 1, wrong: str | None = None, **changes: Any
) -> RouterParams:
    """Publish instructions. The params for a training on them and on a few non-instructions of each kind."""
    publish_instructions(root, n_captions, wrong=wrong)
    kinds = load_non_instructions(ROOT / NON_INSTRUCTIONS, "fit")
    file = root / "non_instructions.yaml"
    file.write_text(yaml.safe_dump({kind: {"fit": texts[:texts_per_kind]} for kind, texts in kinds.items()}))
    return make_params(non_instructions=str(file), **changes)


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


def test_equal_texts_are_in_one_fold_whatever_their_captions() -> None:
    rows = [
        Instruction(f"c{i}", "local", "make it red", f"a {word} star", f"a red {word}", None, None, False, i, "w", "")
        for i, word in enumerate(("make", "big", "small", "it", "blue", "red"))
    ]
    assert len({example.fold for example in router.label_instructions(rows, 5)}) == 1


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


@pytest.mark.parametrize(
    ("changes", "uses_lora", "dtype"),
    [
        ({}, False, torch.float32),
        ({"lora": "on"}, True, torch.bfloat16),
        ({"lora": "on", "dtype": "float32"}, True, torch.float32),
    ],
)
def test_adapters_and_half_precision_go_together(changes: dict[str, Any], uses_lora: bool, dtype: torch.dtype) -> None:
    assert router.choose_precision(make_params(**changes), str(T5)) == (uses_lora, dtype)


def test_a_large_t5_gets_adapters_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router.classifier_adapters, "count_parameters", lambda base: 2_850_000_000)  # flan-t5-xl
    assert router.choose_precision(make_params(), "google/flan-t5-xl") == (True, torch.bfloat16)
    assert router.choose_precision(make_params(lora="off"), "google/flan-t5-xl") == (False, torch.float32)


def test_full_training_in_half_precision_is_an_error() -> None:
    with pytest.raises(RouterError, match=r"want router.lora on with router.dtype bfloat16"):
        router.choose_precision(make_params(dtype="bfloat16", lora="off"), str(T5))


def test_a_router_with_adapters_is_trained_and_saved_in_half_precision(tmp_path: Path) -> None:
    run(publish_little(tmp_path, lora="on", epochs=1), tmp_path)
    tensors = load_file(tmp_path / router.OUT / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert not any("lora" in name for name in tensors)
    assert task_predictor.load(str(tmp_path / router.OUT)).tasks == ("remove", "sketch")


@pytest.mark.parametrize("lora", ["off", "on"])
def test_a_router_that_ran_out_of_memory_keeps_fewer_activations_and_learns_the_same(
    lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params, kept_bytes = publish_little(tmp_path, lora=lora, dtype="float32", epochs=1, batch_size=8), [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept_bytes[-1] += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(params, tmp_path)
        weights = load_file(tmp_path / router.OUT / "model.safetensors")
        monkeypatch.setenv(MEMORY_ENV, "1")
        kept_bytes.append(0)
        run(params, tmp_path)
    for name, value in load_file(tmp_path / router.OUT / "model.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0.2 * params.lr, msg=f"{name}: more than rounding")
    assert kept_bytes[1] < 0.5 * kept_bytes[0]
    assert "router: ran out of memory" in capsys.readouterr().out


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


def test_too_few_wordings_for_the_folds_are_an_error(tmp_path: Path) -> None:
    publish_instructions(tmp_path, n_captions=1)
    with pytest.raises(RouterError, match="and wordings for 40 folds; got"):
        run(make_params(folds=40), tmp_path)
