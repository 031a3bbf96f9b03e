import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from emuedit.predictor import new_tasks, ngram_classifier, task_predictor
from emuedit.predictor.ngram_classifier import NgramClassifier
from emuedit.predictor.task_predictor import NO_EDIT, TaskPrediction, TaskPredictor

T5 = Path(__file__).parents[2] / "toyworld" / "weights" / "t5"
TASKS = ("local", "remove", "sketch")
TEXTS = ["make the star red", "remove the blue ring from the picture on the left", "", "Draw with </s> lines </s>"]


@pytest.fixture
def predictor() -> TaskPredictor:
    """A predictor that was not trained."""
    return task_predictor.from_t5(str(T5), TASKS, 16)


@pytest.mark.slow
def test_a_new_head_follows_from_the_seed_alone(predictor: TaskPredictor) -> None:
    state = torch.get_rng_state()
    same, other = task_predictor.from_t5(str(T5), TASKS, 16), task_predictor.from_t5(str(T5), TASKS, 16, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator must not be used"
    torch.testing.assert_close(same.probabilities(TEXTS), predictor.probabilities(TEXTS), rtol=0, atol=0)
    assert not torch.equal(other.probabilities(TEXTS), predictor.probabilities(TEXTS))


@pytest.mark.slow
def test_a_saved_predictor_is_a_standard_folder_and_predicts_the_same(predictor: TaskPredictor, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    predictor.save(tmp_path)
    loaded = task_predictor.load(str(tmp_path))
    assert loaded.tasks == predictor.tasks == TASKS
    assert loaded.predict(TEXTS) == predictor.predict(TEXTS)
    labels = {"0": "local", "1": "remove", "2": "sketch", "3": NO_EDIT}
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == labels
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path)(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        by_transformers = classifier(**tokens).logits.softmax(-1)
    torch.testing.assert_close(by_transformers[:, :3], predictor.probabilities(TEXTS[:1]))


def test_a_prediction_ranks_the_tasks(predictor: TaskPredictor) -> None:
    probabilities = predictor.probabilities(TEXTS)
    no_edit = (predictor.all_logits(TEXTS)).softmax(-1)[:, predictor.labels.index(NO_EDIT)]
    torch.testing.assert_close(probabilities.sum(-1) + no_edit, torch.ones(4))
    probabilities[[0, 1, 3]] /= probabilities[[0, 1, 3]].sum(-1, keepdim=True)  # not of the empty text, which is refused
    for row, prediction in zip(probabilities, predictor.predict(TEXTS), strict=True):
        first, *others = row.argsort(descending=True).tolist()
        assert (prediction.task, prediction.probability) == (TASKS[first], row[first].item())
        assert prediction.alternatives == tuple((TASKS[k], row[k].item()) for k in others)
    assert predictor.predict([]) == []


def test_a_prediction_may_be_limited_to_the_tasks_of_an_editor(predictor: TaskPredictor) -> None:
    probabilities = predictor.probabilities(TEXTS)
    probabilities[[0, 1, 3]] /= probabilities[[0, 1, 3]].sum(-1, keepdim=True)  # not of the empty text, which is refused
    for row, prediction in zip(probabilities, predictor.predict(TEXTS, ["sketch", "local", "contour"]), strict=True):
        first, second = sorted((0, 2), key=lambda k: -row[k].item())
        assert (prediction.task, prediction.probability) == (TASKS[first], row[first].item())
        assert prediction.alternatives == ((TASKS[second], row[second].item()),)
    for row, prediction in zip(probabilities, predictor.predict(TEXTS, ["remove"]), strict=True):
        assert (prediction.task, prediction.probability, prediction.alternatives) == ("remove", row[1].item(), ())
    with pytest.raises(
        ValueError, match=r"want one of the task predictor's tasks \(local, remove, sketch\), got an editor of contour"
    ):
        predictor.predict(TEXTS, ["contour"])


class FixedLogits(TaskPredictor):
    """Gives these logits for every text."""

    def __init__(self, predictor: TaskPredictor, logits: list[float]) -> None:
        super().__init__(predictor.model, predictor.tokenizer)
        self.fixed = torch.tensor(logits)

    def all_logits(self, texts: Sequence[str], batch: int = 64) -> torch.Tensor:
        return self.fixed.repeat(len(texts), 1)


def test_a_text_without_a_task_is_refused_and_says_what_is_near(predictor: TaskPredictor) -> None:
    fixed = FixedLogits(predictor, [1.0, 0.0, -4.0, 3.0])  # the last class is that of no edit
    support = fixed.probabilities([""])[0].sum().item()
    assert support == pytest.approx(0.157, abs=1e-3)
    fixed.calibrate(1.0, support - 0.01)
    (accepted,) = fixed.predict(["hello"])
    assert not accepted.refused
    assert accepted.probability + sum(p for _, p in accepted.alternatives) == pytest.approx(1), "given that it is an instruction"
    assert fixed.predict(["  "])[0].refused, "an empty text asks for nothing, whatever the network says"
    fixed.calibrate(1.0, support + 0.01)
    (prediction,) = fixed.predict(["hello"])
    assert prediction.refused
    assert prediction.readings == ()
    assert not prediction.ambiguous
    assert "got 'hello'; the nearest tasks are local (11%), remove (4%), sketch (0%)" in prediction.explain_refusal("hello")
    assert "teach it from examples with `emuedit learn`" in prediction.explain_refusal("hello")
    assert len(prediction.explain_refusal("hello " * 2000)) < 500


def test_an_instruction_for_a_task_that_the_editor_lacks_is_refused(predictor: TaskPredictor) -> None:
    fixed = FixedLogits(predictor, [1.0, 6.0, 0.0, -3.0])
    fixed.calibrate(1.0, 0.5)
    assert not fixed.predict(["remove it"])[0].refused
    assert fixed.predict(["remove it"], ["local", "sketch"])[0].refused


@pytest.mark.parametrize(
    ("alternatives", "readings"),
    [
        ((("global", 0.2), ("style", 0.1)), (("color", 0.5), ("global", 0.2))),
        ((("global", 0.19), ("style", 0.1)), (("color", 0.5),)),
        ((), (("color", 0.5),)),
    ],
)
def test_a_probable_second_task_makes_an_instruction_ambiguous(
    alternatives: tuple[tuple[str, float], ...], readings: tuple[tuple[str, float], ...]
) -> None:
    prediction = TaskPrediction("color", 0.5, alternatives)
    assert prediction.readings == readings
    assert prediction.ambiguous == (len(readings) == 2)


@pytest.mark.slow
def test_temperature_and_threshold_are_saved(predictor: TaskPredictor, tmp_path: Path) -> None:
    assert (predictor.temperature, predictor.min_support) == (1.0, 0.0)
    before = predictor.probabilities(TEXTS)
    predictor.calibrate(0.5, 0.3)
    torch.testing.assert_close(predictor.probabilities(TEXTS), (predictor.all_logits(TEXTS) * 2).softmax(-1)[:, :3])
    assert not torch.allclose(predictor.probabilities(TEXTS), before)
    predictor.save(tmp_path)
    loaded = task_predictor.load(str(tmp_path))
    assert (loaded.temperature, loaded.min_support) == (0.5, 0.3)
    assert loaded.predict(TEXTS) == predictor.predict(TEXTS)


@pytest.mark.slow
def test_the_n_gram_classifier_is_a_second_expert(predictor: TaskPredictor, tmp_path: Path) -> None:
    alone = predictor.probabilities(TEXTS)
    predictor.ngrams = NgramClassifier.fit(["make it", "remove it", "draw it", "hello"], [0, 1, 2, 3], 4)
    torch.testing.assert_close(predictor.probabilities(TEXTS), alone)  # not calibrated
    predictor.calibrate(2.0, 0.0, ngram_weight=3.0)
    joint = (predictor.all_logits(TEXTS) / 2 + 3 * predictor.ngrams.logits(TEXTS)).softmax(-1)
    torch.testing.assert_close(predictor.probabilities(TEXTS), joint[:, :3])
    predictions = predictor.predict(TEXTS)
    assert [predictions[k].task for k in (0, 1, 3)] == ["local", "remove", "sketch"]
    predictor.save(tmp_path)
    loaded = task_predictor.load(str(tmp_path))
    assert loaded.predict(TEXTS) == predictions
    (tmp_path / ngram_classifier.WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"want ngrams.safetensors in .*; copy the whole folder"):
        task_predictor.load(str(tmp_path))


@pytest.mark.slow
def test_a_predictor_on_the_hub_has_its_n_grams_and_known_texts(
    predictor: TaskPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    predictor.ngrams = NgramClassifier.fit(["make it", "remove it"], [0, 1], 4)
    predictor.calibrate(1.0, 0.0, ngram_weight=1.0)
    predictor.save(tmp_path)
    new_tasks.write_known(tmp_path, ["make it"], ["local"])
    for library in (transformers.AutoModelForSequenceClassification, transformers.AutoTokenizer):
        load = library.from_pretrained
        monkeypatch.setattr(library, "from_pretrained", lambda name, load=load, **options: load(tmp_path, **options))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, revision: str(tmp_path / file))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, allow_patterns: str(tmp_path))
    loaded = task_predictor.load("owner/name")
    assert loaded.predict(TEXTS) == predictor.predict(TEXTS)
    assert loaded.known_instructions == {"local": ["make it"]}


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
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_text() == (T5 / name).read_text()
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, T5)]
    assert configs[0] | {"dtype": "float16"} == configs[1]  # weights are published in float16


@pytest.mark.slow
def test_words_of_the_toy_world_are_one_or_two_tokens() -> None:
    from transformers import AutoTokenizer

    from toyworld.edits import toy_tasks
    from toyworld.edits.exact_edits import build_edits

    tokenizer = AutoTokenizer.from_pretrained(T5)
    for task in toy_tasks.TRAINED:
        for text in build_edits(task, "held_out", 0, 30).instructions:
            tokens = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in tokens
            assert len(tokens) <= 2 * len(text.split()) + 2, text


def test_words_of_one_stem_share_a_token() -> None:
    from transformers import AutoTokenizer

    tokenize = AutoTokenizer.from_pretrained(T5).tokenize
    assert tokenize("brighter")[0] == tokenize("brighten")[0] == tokenize("Brightness")[0]
