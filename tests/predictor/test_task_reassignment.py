import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from emuedit.predictor import task_predictor, task_reassignment
from emuedit.predictor.cross_fitting import write_out_of_fold
from emuedit.predictor.task_predictor import TaskPredictor
from emuedit.predictor.task_reassignment import predict_tasks, reassign

T5 = Path(__file__).parents[2] / "toyworld/weights/t5"


def test_a_probable_task_replaces_another_one_and_an_unknown_one_stays() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95], [0.0, 1.0]])
    result = reassign(["a", "a", "a", "other"], ["w", "x", "y", "z"], ["a", "b"], p, min_probability=0.9)
    assert result.tasks == ("a", "a", "b", "other")
    np.testing.assert_array_equal(result.probability, [0.9, 0.2, 0.95, np.nan])
    assert reassign([], [], ["a", "b"], np.zeros((0, 2)), min_probability=0.9).tasks == ()


@pytest.mark.parametrize(("task", "predicted"), [("segment", "detect"), ("local", "color"), ("color", "local")])
def test_neither_a_pair_of_an_annotated_task_nor_a_pair_predicted_as_one_is_reassigned(task: str, predicted: str) -> None:
    result = reassign([task, "remove"], ["x", "y"], [task, predicted, "remove"], np.array([[0.01, 0.98, 0.01]] * 2), 0.9)
    assert result.tasks == (task, "local" if predicted == "local" else "remove")
    np.testing.assert_array_equal(result.probability, [0.01, 0.98 if predicted == "local" else 0.01])


def test_predictions_are_cached_for_equal_texts_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = task_predictor.from_t5(str(T5), ["local", "remove", "add"], 32)
    predictor.save(tmp_path / "router")
    texts = ["remove the star", "make it red", "remove the star"]
    tasks, p = predict_tasks(texts, tmp_path / "router", tmp_path / "cache")
    assert tasks == ("local", "remove", "add")
    want = predictor.probabilities(texts).numpy()
    assert want.sum(1).max() < 0.999, "the rest is the probability that it is no instruction"
    np.testing.assert_allclose(p, want / want.sum(1, keepdims=True), atol=1e-5)
    monkeypatch.setattr(task_predictor, "load", lambda *_: pytest.fail("the predictor was loaded again"))
    np.testing.assert_array_equal(predict_tasks(texts[:2] * 2, tmp_path / "router", tmp_path / "cache")[1], p[[0, 1, 0, 1]])
    with pytest.raises(pytest.fail.Exception):
        predict_tasks(["another"], tmp_path / "router", tmp_path / "cache")


@pytest.mark.slow
def test_the_cache_of_another_predictor_is_not_used_and_is_deleted(tmp_path: Path) -> None:
    texts = ["remove the star", "make it red"]
    results = []
    for seed in (0, 1):
        task_predictor.from_t5(str(T5), ["local", "remove"], 32, seed=seed).save(tmp_path / "router")
        results.append(predict_tasks(texts, tmp_path / "router", tmp_path / "cache")[1])
        assert len(list((tmp_path / "cache").iterdir())) == 1
    assert not np.array_equal(*results)


def test_an_instruction_of_the_training_data_has_the_prediction_of_a_model_that_did_not_see_it(tmp_path: Path) -> None:
    predictor = task_predictor.from_t5(str(T5), ["local", "remove"], 32)
    predictor.save(tmp_path / "router")
    out_of_fold = np.array([[0.07, 0.91]])
    write_out_of_fold(tmp_path / "router", ["remove the star"], [0], ["local", "remove"], out_of_fold)
    _, p = predict_tasks(["make it red", "remove the star"], tmp_path / "router", tmp_path / "cache")
    np.testing.assert_allclose(p[1], out_of_fold[0] / 0.98, atol=1e-6)
    want = predictor.probabilities(["make it red"])[0].numpy()
    np.testing.assert_allclose(p[0], want / want.sum(), atol=1e-5)


@pytest.mark.slow
def test_no_texts_have_no_predictions(tmp_path: Path) -> None:
    task_predictor.from_t5(str(T5), ["local", "remove"], 32).save(tmp_path / "router")
    tasks, p = predict_tasks([], tmp_path / "router", tmp_path / "cache")
    assert (tasks, p.shape) == (("local", "remove"), (0, 2))


class CountingPredictor:
    """Predicts from the length of a text, and counts the texts."""

    tasks = ("local", "remove")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.stop_after = 10**6

    def probabilities(self, texts: Sequence[str]) -> torch.Tensor:
        if len(self.texts) >= self.stop_after:
            raise KeyboardInterrupt
        self.texts += texts
        p = torch.tensor([1 / (2 + len(text)) for text in texts])
        return torch.stack([p, 0.9 - p], 1)


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingPredictor:
    """The predictor of the folder `router`."""
    (tmp_path / "router").mkdir()
    (tmp_path / "router/weights").write_text("w")
    predictor = CountingPredictor()
    monkeypatch.setattr(task_predictor, "load", lambda *_: predictor)
    return predictor


def expected(texts: Sequence[str]) -> np.ndarray:
    p = CountingPredictor().probabilities(texts).double().numpy()
    return np.asarray(p / p.sum(1, keepdims=True))


def test_only_new_texts_are_predicted(tmp_path: Path, counting: CountingPredictor) -> None:
    texts = ["remove the star", "make it red", "remove the star"]
    for question, predicted in (
        (texts, ["make it red", "remove the star"]),
        ([*texts, "add"], ["add"]),
        (["add", "make it red"], []),
        (["ä new one", *texts], ["ä new one"]),
        ([], []),
    ):
        counting.texts.clear()
        _, p = predict_tasks(question, tmp_path / "router", tmp_path / "cache")
        assert counting.texts == predicted
        np.testing.assert_array_equal(p, expected(question) if question else np.zeros((0, 2)))


def test_stopped_predictions_resume_with_equal_batches(
    tmp_path: Path, counting: CountingPredictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(task_reassignment, "TEXTS_PER_FILE", 4)
    monkeypatch.setattr(task_reassignment, "_TEXTS_PER_CALL", 2)
    texts = [f"{number:02d}" + "x" * number for number in range(11)]
    counting.stop_after = 6
    with pytest.raises(KeyboardInterrupt):
        predict_tasks(texts, tmp_path / "router", tmp_path / "cache")
    assert len(counting.texts) == 6
    counting.texts.clear()
    counting.stop_after = 10**6
    np.testing.assert_array_equal(predict_tasks(texts, tmp_path / "router", tmp_path / "cache")[1], expected(texts))
    assert counting.texts == texts[4:], "those of an unfinished file again"
    assert capsys.readouterr().err.splitlines()[-1] == "dataset: predict tasks: 7/7 instructions, 100%"


def test_a_stored_file_has_whole_batches_of_the_predictor() -> None:
    batch = inspect.signature(TaskPredictor.probabilities).parameters["batch"].default
    assert task_reassignment.TEXTS_PER_FILE % task_reassignment._TEXTS_PER_CALL == 0
    assert task_reassignment._TEXTS_PER_CALL % batch == 0


def test_predictions_of_an_earlier_version_are_deleted(tmp_path: Path, counting: CountingPredictor) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/0123.npz").write_bytes(b"")
    predict_tasks(["add"], tmp_path / "router", tmp_path / "cache")
    assert [path.is_dir() for path in (tmp_path / "cache").iterdir()] == [True]
    assert counting.texts == ["add"]
