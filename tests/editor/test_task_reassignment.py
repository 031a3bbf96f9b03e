"""The router's second look at the tasks of pairs."""

from pathlib import Path

import numpy as np
import pytest

from emuedit.editor import task_predictor, task_reassignment

ROOT = Path(__file__).parents[2]
T5 = ROOT / "toyworld/weights/t5"


def test_a_likely_task_takes_over_and_an_unknown_one_stays() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95], [0.0, 1.0]])
    found = task_reassignment.reassigned(["a", "a", "a", "other"], ["w", "x", "y", "z"], ["a", "b"], p, least=0.9)
    assert found.tasks == ("a", "a", "b", "other")
    np.testing.assert_array_equal(found.probability, [0.9, 0.2, 0.95, np.nan])
    assert task_reassignment.reassigned([], [], ["a", "b"], np.zeros((0, 2)), least=0.9).tasks == ()


def test_what_the_router_said_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = task_predictor.start(str(T5), ["local", "remove", "add"], 32)
    router.save(tmp_path / "router")
    texts = ["remove the star", "make it red", "remove the star"]
    known, p = task_reassignment.read(texts, tmp_path / "router", tmp_path / "cache")
    assert known == ("local", "remove", "add")
    np.testing.assert_allclose(p, router.probabilities(texts).numpy(), atol=1e-5)
    monkeypatch.setattr(task_predictor, "load", lambda *_: pytest.fail("it was read again"))
    np.testing.assert_array_equal(
        task_reassignment.read(texts[:2] * 2, tmp_path / "router", tmp_path / "cache")[1], p[[0, 1, 0, 1]]
    )
    with pytest.raises(pytest.fail.Exception):
        task_reassignment.read(["another"], tmp_path / "router", tmp_path / "cache")
