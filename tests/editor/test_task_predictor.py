import json
from pathlib import Path

import pytest
import torch

from emuedit.editor import task_predictor
from emuedit.editor.task_predictor import TaskPrediction, TaskPredictor

T5 = Path(__file__).parents[2] / "toyworld" / "weights" / "t5"
TASKS = ("local", "remove", "sketch")
TEXTS = ["make the star red", "remove the blue ring from the picture on the left", "", "Draw with </s> lines </s>"]


@pytest.fixture
def predictor() -> TaskPredictor:
    """A predictor that was not trained."""
    return task_predictor.from_t5(str(T5), TASKS, 16)


def test_a_new_head_follows_from_the_seed_alone(predictor: TaskPredictor) -> None:
    state = torch.get_rng_state()
    same, other = task_predictor.from_t5(str(T5), TASKS, 16), task_predictor.from_t5(str(T5), TASKS, 16, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator must not be used"
    torch.testing.assert_close(same.probabilities(TEXTS), predictor.probabilities(TEXTS), rtol=0, atol=0)
    assert not torch.equal(other.probabilities(TEXTS), predictor.probabilities(TEXTS))


def test_a_saved_predictor_is_a_standard_folder_and_predicts_the_same(predictor: TaskPredictor, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    predictor.save(tmp_path)
    loaded = task_predictor.load(str(tmp_path))
    assert loaded.tasks == predictor.tasks == TASKS
    assert loaded.predict(TEXTS) == predictor.predict(TEXTS)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "local", "1": "remove", "2": "sketch"}
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path)(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        by_transformers = classifier(**tokens).logits.softmax(-1)
    torch.testing.assert_close(by_transformers, predictor.probabilities(TEXTS[:1]))


def test_a_prediction_holds_the_two_most_probable_tasks(predictor: TaskPredictor) -> None:
    probabilities = predictor.probabilities(TEXTS)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4))
    for row, prediction in zip(probabilities, predictor.predict(TEXTS), strict=True):
        first, second, _ = row.argsort(descending=True).tolist()
        assert prediction == TaskPrediction(TASKS[first], row[first].item(), TASKS[second], row[second].item())
    assert predictor.predict([]) == []


def test_a_prediction_may_be_limited_to_the_tasks_of_an_editor(predictor: TaskPredictor) -> None:
    probabilities = predictor.probabilities(TEXTS)
    for row, prediction in zip(probabilities, predictor.predict(TEXTS, ["sketch", "local", "contour"]), strict=True):
        first, second = sorted((0, 2), key=lambda k: -row[k].item())
        assert prediction == TaskPrediction(TASKS[first], row[first].item(), TASKS[second], row[second].item())
    for row, prediction in zip(probabilities, predictor.predict(TEXTS, ["remove"]), strict=True):
        assert prediction == TaskPrediction("remove", row[1].item(), None, 0.0)
    with pytest.raises(
        ValueError, match=r"want a task that the task predictor knows \(local, remove, sketch\), got an editor of contour"
    ):
        predictor.predict(TEXTS, ["contour"])


def test_probabilities_do_not_depend_on_the_batch(predictor: TaskPredictor) -> None:
    together = predictor.probabilities(TEXTS)
    torch.testing.assert_close(predictor.probabilities(TEXTS, batch=1), together, rtol=1e-5, atol=1e-6)


def test_upper_case_makes_no_difference_and_long_texts_are_cut(predictor: TaskPredictor) -> None:
    upper, lower, long = predictor.probabilities(["MAKE the Star red", TEXTS[0], "make the star red " * 90])
    torch.testing.assert_close(upper, lower)
    assert torch.isfinite(long).all()
    assert len(predictor.tokenizer("make the star red " * 90, truncation=True).input_ids) == 16


def test_what_is_not_a_task_predictor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a T5 whose labels are not tasks; run the stage `router`"):
        task_predictor.load(str(T5))
    with pytest.raises(ValueError, match="model_type"):
        task_predictor.from_t5(str(T5.parent / "detector"), TASKS, 16)
    with pytest.raises(FileNotFoundError, match="a transformers T5"):
        task_predictor.load(str(tmp_path))


@pytest.mark.parametrize("tasks", [["local"], ["local", "local"]])
def test_a_predictor_needs_two_different_tasks(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="want two or more different tasks"):
        task_predictor.from_t5(str(T5), tasks, 16)


def test_the_published_toy_t5_is_the_one_that_its_recipe_makes(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from toyworld.training import train_t5

    folder = train_t5.run(tmp_path)
    trained, published = load_file(folder / "model.safetensors"), load_file(T5 / "model.safetensors")
    assert trained.keys() == published.keys()
    for name, value in trained.items():
        torch.testing.assert_close(published[name].float(), value, rtol=1e-3, atol=1e-4)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (folder / name).read_text() == (T5 / name).read_text()


def test_words_of_the_toy_world_are_single_tokens() -> None:
    from transformers import AutoTokenizer

    from toyworld.edits.exact_edits import build_edits, trained_task_names

    tokenizer = AutoTokenizer.from_pretrained(T5)
    for task in trained_task_names():
        for text in build_edits(task, "held_out", 0, 30).instructions:
            tokens = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in tokens
            assert len(tokens) <= 2 * len(text.split()) + 2, text
