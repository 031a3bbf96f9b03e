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
def router() -> TaskPredictor:
    return task_predictor.start(str(T5), TASKS, 16)


def test_a_fresh_head_is_the_same_for_a_seed_and_leaves_chance_alone(router: TaskPredictor) -> None:
    state = torch.get_rng_state()
    again, other = task_predictor.start(str(T5), TASKS, 16), task_predictor.start(str(T5), TASKS, 16, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(again.probabilities(TEXTS), router.probabilities(TEXTS), rtol=0, atol=0)
    assert not torch.equal(other.probabilities(TEXTS), router.probabilities(TEXTS))


def test_a_saved_router_is_a_standard_folder_and_guesses_the_same(router: TaskPredictor, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    router.save(tmp_path)
    loaded = task_predictor.load(str(tmp_path))
    assert loaded.tasks == router.tasks == TASKS
    assert loaded.predict(TEXTS) == router.predict(TEXTS)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "local", "1": "remove", "2": "sketch"}
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    read = AutoTokenizer.from_pretrained(tmp_path)(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        theirs = plain(**read).logits.softmax(-1)
    torch.testing.assert_close(theirs, router.probabilities(TEXTS[:1]))


def test_a_guess_is_the_best_two(router: TaskPredictor) -> None:
    probabilities = router.probabilities(TEXTS)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4))
    for row, guess in zip(probabilities, router.predict(TEXTS), strict=True):
        order = row.argsort(descending=True).tolist()
        assert guess == TaskPrediction(TASKS[order[0]], row[order[0]].item(), TASKS[order[1]], row[order[1]].item())
    assert router.predict([]) == []


def test_batches_and_what_stands_beside_change_nothing(router: TaskPredictor) -> None:
    whole = router.probabilities(TEXTS)
    torch.testing.assert_close(router.probabilities(TEXTS, batch=1), whole, rtol=1e-5, atol=1e-6)


def test_case_counts_not_and_long_texts_are_cut(router: TaskPredictor) -> None:
    first, second, third = router.probabilities(["MAKE the Star red", TEXTS[0], "make the star red " * 90])
    torch.testing.assert_close(first, second)
    assert torch.isfinite(third).all()
    assert len(router.tokenizer("make the star red " * 90, truncation=True).input_ids) == 16


def test_what_is_no_router_is_named(router: TaskPredictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a T5 whose labels are no tasks; run the station"):
        task_predictor.load(str(T5))
    with pytest.raises(ValueError, match="want two or more different tasks"):
        task_predictor.start(str(T5), ["local"], 16)
    with pytest.raises(ValueError, match="model_type"):
        task_predictor.start(str(T5.parent / "detector"), TASKS, 16)
    with pytest.raises(FileNotFoundError, match="a transformers T5"):
        task_predictor.load(str(tmp_path))


def test_the_published_t5_is_what_the_recipe_makes(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from toyworld.training import train_t5

    folder = train_t5.run(tmp_path)
    made, shipped = load_file(folder / "model.safetensors"), load_file(T5 / "model.safetensors")
    assert made.keys() == shipped.keys()
    for name, value in made.items():
        torch.testing.assert_close(shipped[name].float(), value, rtol=1e-3, atol=1e-4)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (folder / name).read_text() == (T5 / name).read_text()


def test_the_toy_words_are_whole_tokens() -> None:
    from transformers import AutoTokenizer

    from toyworld.edits.exact_edits import build_edits, trained_task_names

    tokenizer = AutoTokenizer.from_pretrained(T5)
    for task in trained_task_names():
        for text in build_edits(task, "held_out", 0, 30).instructions:
            found = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in found
            assert len(found) <= 2 * len(text.split()) + 2, text
