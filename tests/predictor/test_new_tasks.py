import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch

from emuedit.predictor import new_tasks, task_predictor
from emuedit.predictor.new_tasks import NewTasks
from emuedit.predictor.task_predictor import NO_EDIT, TaskPredictor
from emuedit.predictor.wording_noise import WordingNoise

T5 = Path(__file__).parents[2] / "toyworld" / "weights" / "t5"
KNOWN = {
    "local": ["make the star red", "turn the ring blue", "paint the circle green", "the cross in white"],
    "remove": ["remove the star", "erase the ring", "take the circle away", "delete the cross"],
    NO_EDIT: ["hello there", "what is this", "a star on a beach", "nice picture"],
}
CUTOUT = ["cut out the objects", "isolate the objects on white", "put everything on white"]
NOISE = WordingNoise()
WORDS = sorted({word for texts in (*KNOWN.values(), CUTOUT) for text in texts for word in text.split()})


def bag_of_words(texts: Sequence[str]) -> torch.Tensor:
    """float32 [B, words]: which words a text has."""
    return torch.tensor([[float(word in text.split()) for word in WORDS] for text in texts])


def test_wordings_near_those_of_the_examples_are_the_new_task_and_others_are_not() -> None:
    fitted = NewTasks.fit({"cutout": CUTOUT}, KNOWN, bag_of_words)
    texts = ["isolate the objects", "cut out everything", "make the ring red", "remove the cross", "hello star"]
    p = fitted.probabilities(bag_of_words(texts))
    torch.testing.assert_close(p.sum(-1), torch.ones(5))
    assert (p[:2, 1] > 0.5).all()
    assert (p[2:, 0] > 0.5).all()


def test_a_text_half_way_between_a_known_and_a_new_task_is_the_known_one() -> None:
    def features(texts: Sequence[str]) -> torch.Tensor:
        places = {"k": (1.0, 0.0), "n": (0.0, 1.0)}
        return torch.tensor([places.get(text[:1].lower(), (0.5, 0.5)) for text in texts])

    fitted = NewTasks.fit({"new": ["nnn nnn", "nnnn nnnn", "n"]}, {"known": ["kkk kkk", "kkkk kkkk", "k"]}, features)
    p_new = fitted.probabilities(features(["k", "n", "half way"]))[:, 1]
    assert p_new[0] < 0.1 < 0.9 < p_new[1]
    assert p_new[2] < 0.35


@pytest.mark.slow
def test_two_new_tasks_are_told_apart_and_the_fit_is_deterministic() -> None:
    instructions = {"cutout": CUTOUT, "night": ["now the circle in the night", "the picture at night", "night there"]}
    words = sorted({*WORDS, "night", "at", "now", "in"})

    def features(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[float(word in text.split()) for word in words] for text in texts])

    first, second = (NewTasks.fit(instructions, KNOWN, features) for _ in range(2))
    x = features(["put the objects on white", "night", "erase the star"])
    assert first.names == ("cutout", "night")
    assert first.probabilities(x).argmax(-1).tolist() == [1, 2, 0]
    assert torch.equal(first.probabilities(x), second.probabilities(x))


def test_some_texts_of_every_class_are_kept_once_each(tmp_path: Path) -> None:
    n = 2 * new_tasks.PER_CLASS
    texts = [*(f"make it {number}" for number in range(n)), *(f"make it {number}" for number in range(n)), "remove it"]
    new_tasks.write_known(tmp_path, texts, ["local"] * 2 * n + ["remove"])
    by_class = new_tasks.read_known(tmp_path)
    assert list(by_class) == ["local", "remove"]
    assert len(set(by_class["local"])) == len(by_class["local"]) == new_tasks.PER_CLASS
    assert by_class["remove"] == ["remove it"]
    assert new_tasks.read_known(tmp_path / "none") == {}


def test_the_texts_that_are_kept_take_no_memory_for_the_longest_of_them_each(tmp_path: Path) -> None:
    """An array of strings would have its width for all."""
    texts = [*(f"make it {number}" for number in range(2000)), "word " * 4000]
    tracemalloc.start()
    try:
        new_tasks.write_known(tmp_path, texts, ["local"] * len(texts))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


@pytest.fixture
def predictor() -> TaskPredictor:
    """A predictor that was not trained, which knows some texts of its classes."""
    untrained = task_predictor.from_t5(str(T5), ("local", "remove"), 16)
    return TaskPredictor(untrained.model, untrained.tokenizer, KNOWN)


@pytest.mark.slow
def test_a_predictor_knows_an_added_task_by_its_instructions_until_it_is_removed(predictor: TaskPredictor) -> None:
    texts = [*CUTOUT, *KNOWN["local"]]
    before = predictor.predict(texts)
    predictor.add_task("cutout", CUTOUT)
    assert predictor.new_tasks == ("cutout",)
    predictions = predictor.predict(texts)
    assert [prediction.task for prediction in predictions[:3]] == ["cutout"] * 3
    assert all(prediction.probability > 0.5 for prediction in predictions[:3])
    assert all(prediction.task != "cutout" for prediction in predictions[3:])
    assert {name for name, _ in predictions[0].alternatives} <= {"local", "remove"}
    assert all(prediction.task != "cutout" for prediction in predictor.predict(texts, ["local", "remove"]))
    predictor.remove_task("cutout")
    assert predictor.predict(texts) == before


def test_names_that_are_taken_and_tasks_that_cannot_be_known_are_errors(predictor: TaskPredictor) -> None:
    predictor.add_task("cutout", CUTOUT)
    for name in ("cutout", "local", NO_EDIT):
        with pytest.raises(ValueError, match=f"want a new name, got {name!r}"):
            predictor.add_task(name, CUTOUT)
    with pytest.raises(ValueError, match="cannot learn 'night' without instructions"):
        predictor.add_task("night", [])
    earlier = TaskPredictor(predictor.model, predictor.tokenizer)
    with pytest.raises(ValueError, match=r"without known_instructions\.json in its folder; run the stage router again"):
        earlier.add_task("night", ["make it night"])


def save(predictor: TaskPredictor, folder: Path, noise: WordingNoise = NOISE) -> None:
    """Save what the stage `router` saves for new tasks."""
    predictor.save(folder)
    rows = [(text, label) for label, texts in KNOWN.items() for text in texts]
    new_tasks.write_known(folder, [text for text, _ in rows], [label for _, label in rows])
    new_tasks.write_known_features(folder, predictor.features, noise)


def load_and_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TaskPredictor, list[str]]:
    """A loaded predictor with the task `cutout`, and the list of texts whose features it computes from now on."""
    loaded, computed = task_predictor.load(str(folder)), list[str]()
    features = loaded.features
    monkeypatch.setattr(loaded, "features", lambda texts: computed.extend(texts) or features(texts))
    loaded.add_task("cutout", CUTOUT)
    return loaded, computed


@pytest.mark.slow
def test_a_loaded_predictor_does_not_compute_the_features_of_the_known_texts_again(
    predictor: TaskPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(predictor, tmp_path)
    stored, computed = load_and_record(tmp_path, monkeypatch)
    texts = [*CUTOUT, *KNOWN["local"], "isolate all of it"]
    predictions = stored.predict(texts)
    assert computed[-len(texts) :] == texts
    assert len(computed) - len(texts) == (1 + 4) * len(CUTOUT), "the examples of the new task and their variations"
    (tmp_path / new_tasks.KNOWN_FEATURES).unlink()
    earlier, computed = load_and_record(tmp_path, monkeypatch)
    expected = earlier.predict(texts)
    assert set(KNOWN["local"]) < set(computed[: -len(texts)])
    assert [prediction.task for prediction in predictions] == [prediction.task for prediction in expected]
    p, expected_p = ([prediction.probability for prediction in row] for row in (predictions, expected))
    assert p == pytest.approx(expected_p, abs=2e-3), "equal up to the rounding to float16"


@pytest.mark.slow
def test_a_new_task_is_learned_with_the_noise_of_the_router(
    predictor: TaskPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(predictor, tmp_path, WordingNoise(typo_share=0, drop_share=0, courtesy_share=0))
    loaded, computed = load_and_record(tmp_path, monkeypatch)
    loaded.predict(["isolate all of it"])
    assert set(computed) == {*CUTOUT, "isolate all of it"}, "without polite phrases"


class FixedShares:
    """New tasks with these probabilities for every text."""

    def __init__(self, *shares: float) -> None:
        self.shares = torch.tensor([1 - sum(shares), *shares])

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        return self.shares.repeat(len(features), 1)


@pytest.mark.parametrize(
    ("shares", "among", "refused"),
    [
        ((0.4, 0.05), None, True),
        ((0.55, 0.0), None, False),
        ((0.3, 0.3), None, False),
        ((0.3, 0.3), ["local", "night"], True),
        ((0.0, 0.6), ["cutout"], True),
    ],
)
def test_a_text_is_accepted_as_a_new_task_only_if_that_is_probable(
    predictor: TaskPredictor, shares: tuple[float, ...], among: list[str] | None, refused: bool
) -> None:
    for name in ("cutout", "night"):
        predictor.add_task(name, CUTOUT)
    predictor._classifier = cast(NewTasks, FixedShares(*shares))
    predictor.model.config.router_min_support = 0.35
    predictor.probabilities = lambda texts, batch=64: torch.tensor([[0.1, 0.1]] * len(texts))  # type: ignore[method-assign]
    assert predictor.predict(["hello there"], among)[0].refused == refused


@pytest.mark.slow
@pytest.mark.parametrize("other", ["texts", "T5"])
def test_stored_features_of_other_texts_or_of_another_t5_are_not_used(
    other: str, predictor: TaskPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(predictor, tmp_path)
    if other == "texts":
        new_tasks.write_known(tmp_path, [*KNOWN["local"], "erase it"], [*["local"] * 4, "remove"])
    else:
        new_tasks.write_known_features(tmp_path, lambda texts: torch.ones(len(texts), 7), NOISE)
    loaded, computed = load_and_record(tmp_path, monkeypatch)
    assert loaded.predict(CUTOUT[:1])[0].task == "cutout"
    assert set(KNOWN["local"]) < set(computed)
