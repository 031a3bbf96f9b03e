from pathlib import Path

import numpy as np
import pytest

from emuedit.predictor import task_predictor
from emuedit.predictor.cross_fitting import write_out_of_fold
from emuedit.predictor.task_reassignment import predict_tasks, reassign

T5 = Path(__file__).parents[2] / "toyworld/weights/t5"


def test_a_probable_task_replaces_another_one_and_an_unknown_one_stays() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95], [0.0, 1.0]])
    result = reassign(["a", "a", "a", "other"], ["w", "x", "y", "z"], ["a", "b"], p, min_probability=0.9)
    assert result.tasks == ("a", "a", "b", "other")
    np.testing.assert_array_equal(result.probability, [0.9, 0.2, 0.95, np.nan])
    assert reassign([], [], ["a", "b"], np.zeros((0, 2)), min_probability=0.9).tasks == ()


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


def test_no_texts_have_no_predictions(tmp_path: Path) -> None:
    task_predictor.from_t5(str(T5), ["local", "remove"], 32).save(tmp_path / "router")
    tasks, p = predict_tasks([], tmp_path / "router", tmp_path / "cache")
    assert (tasks, p.shape) == (("local", "remove"), (0, 2))
