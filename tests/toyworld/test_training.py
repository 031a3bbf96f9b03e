from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from emuedit.models import image_tensors
from toyworld.scenes import render
from toyworld.scenes.scene import generate_scenes, scene_numbers
from toyworld.training import __main__ as command
from toyworld.training import (
    detection_metrics,
    detection_phrases,
    train_clip,
    train_detector,
    train_dino,
)
from toyworld.training import tokenizer as tokens
from toyworld.training.detection_phrases import Phrase
from toyworld.training.render_cache import load_scenes
from toyworld.training.training_run import Recipe, device, train

N_SCENES = 60


class KilledError(Exception):
    pass


def train_small_detector(scratch: Path, killed_at: int | None = None) -> dict[str, Tensor]:
    """Train the detector for four steps and save after each; step `killed_at` raises KilledError."""
    torch.manual_seed(0)
    model = train_detector.build()
    tokenizer = tokens.build(scratch.parent / "tokenizer")
    scenes, truth = load_scenes(scratch.parent / "pool", N_SCENES)
    ids = tokenizer(["red star", "a card"], padding=True, return_tensors="pt").input_ids
    matches = torch.from_numpy(detection_phrases.match_objects([Phrase(4, 0), Phrase(8)], scenes))

    def loss_at(step: int) -> Tensor:
        if step == killed_at:
            raise KilledError
        rows = np.random.default_rng(step).integers(N_SCENES, size=4)
        x = train_detector.jitter_colours(image_tensors.from_uint8(truth.images[rows])).to(device())
        logits, predicted_boxes = train_detector.predict(model, x, ids.to(device()))
        boxes = torch.from_numpy(truth.select(rows).boxes).to(device())
        return train_detector.loss(logits, predicted_boxes, boxes, matches[rows].to(device()))

    return train(model, loss_at, Recipe(steps=4, batch=4, lr=1e-3, warmup_steps=2), scratch, save_every_s=-1).state_dict()


@pytest.mark.slow
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    uninterrupted = train_small_detector(tmp_path / "uninterrupted")
    with pytest.raises(KilledError):
        train_small_detector(tmp_path / "killed", killed_at=2)
    resumed = train_small_detector(tmp_path / "killed")
    assert all(torch.equal(value, resumed[name]) for name, value in uninterrupted.items())


@pytest.mark.slow
def test_the_teacher_of_dino_is_resumed_with_its_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(train_dino.RECIPE, steps=4, batch=3)
    monkeypatch.setattr(train_dino, "train", partial(train, save_every_s=-1))

    def trained(name: str) -> bytes:
        return (train_dino.run(tmp_path / name, recipe, n_images=N_SCENES) / "model.safetensors").read_bytes()

    uninterrupted = trained("uninterrupted")
    losses = iter([train_dino.loss, train_dino.loss])  # of the steps before the kill

    def loss_until_killed(*arguments: Any) -> Tensor:
        try:
            return next(losses)(*arguments)
        except StopIteration:
            raise KilledError from None

    with monkeypatch.context() as until_killed:
        until_killed.setattr(train_dino, "loss", loss_until_killed)
        with pytest.raises(KilledError):
            trained("killed")
    assert trained("killed") == uninterrupted
    assert trained("killed") == uninterrupted, "also if it is repeated after its last step"


def test_the_render_cache_is_renewed_when_the_renderer_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, truth = load_scenes(tmp_path, 10)
    np.testing.assert_array_equal(truth.images, render.truth(generate_scenes(scene_numbers("train", 0, 10))).images)
    original = render.truth

    def render_darker(scenes: Any) -> render.GroundTruth:
        return replace(original(scenes), images=original(scenes).images // 2)

    monkeypatch.setattr("toyworld.training.render_cache.truth", render_darker)
    np.testing.assert_array_equal(load_scenes(tmp_path, 10)[1].images, truth.images // 2)


def test_a_phrase_for_an_object_matches_it() -> None:
    import random

    scenes = generate_scenes(scene_numbers("train", 0, 200))
    rng = random.Random(0)
    for n, slot in np.argwhere(scenes.present):
        phrase = detection_phrases.phrase_for_object(scenes, n, slot, rng)
        assert detection_phrases.match_objects([phrase], scenes[n : n + 1])[0, slot, 0], phrase.text()
    phrases = detection_phrases.sample_phrases(scenes, 50, rng)
    assert len({phrase.text() for phrase in phrases}) == 50


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        (Phrase(4, 0, 1, 1), "big red striped star"),
        (Phrase(8, variant=0), "card with the letter A"),
        (Phrase(9, 3, variant=3), "green person waving"),
        (Phrase(9, variant=0), "person with arms up"),
        (Phrase(colour=1), "orange object"),
    ],
)
def test_phrases_have_the_wording_of_captions(phrase: Phrase, text: str) -> None:
    assert phrase.text() == text


def proposal_precision(score: Callable[[bool], float]) -> float:
    """Average precision of a detector that returns every true box for every phrase; its score depends on the match."""
    from emuedit.models.detector import Detections

    scenes = generate_scenes(scene_numbers("held_out", 0, 40))
    boxes = torch.from_numpy(render.truth(scenes).boxes)
    phrases = [detection_metrics._evaluation_phrases(scenes, n, all_attributes=True) for n in range(40)]
    detections = []
    for n, image_phrases in enumerate(phrases):
        matches = detection_phrases.match_objects(image_phrases, scenes[n : n + 1])[0]
        pairs = [(slot, k) for slot in np.flatnonzero(scenes.present[n]) for k in range(len(image_phrases))]
        pairs.sort(key=lambda pair: -score(matches[pair]))
        slots, indices = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        scores = torch.tensor([score(matches[pair]) for pair in pairs])
        detections.append(Detections(boxes[n, slots], scores, indices))
    return detection_metrics.average_precision(scenes, boxes, phrases, detections)


@pytest.mark.slow
def test_average_precision_is_one_for_the_truth_and_low_for_reversed_scores() -> None:
    assert proposal_precision(lambda matches: 0.9 if matches else 0.1) == pytest.approx(1.0)
    assert proposal_precision(lambda matches: 0.1 if matches else 0.9) < 0.5


def test_captions_of_maps_name_no_colour(tmp_path: Path) -> None:
    import random

    from toyworld.scenes.palette import COLOURS

    scenes = generate_scenes(scene_numbers("train", 0, 50))
    for kind in ("depth", "sketch", "contour", "pose"):
        for n in range(50):
            assert not set(train_clip.caption_picture(scenes, n, kind, random.Random(n)).split()) & set(COLOURS)


@pytest.mark.slow
def test_clip_starts_from_the_weights_of_the_detector(tmp_path: Path) -> None:
    tokenizer = tokens.build(tmp_path / "tokenizer")
    torch.manual_seed(0)
    detector, model = train_detector.build().eval(), train_clip.build().eval()
    train_detector.save(detector, tokenizer, tmp_path / "detector")
    train_clip.load_detector_weights(model, tmp_path / "detector")
    images = torch.rand(2, 3, 64, 64)
    ids = tokenizer(["red star", "a card"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        pooled = detector.owlvit.vision_model(pixel_values=images).pooler_output
        torch.testing.assert_close(model.visual.ln_post(model.visual.transformer(embed_patches(model, images)))[:, 0], pooled)
        text_output = detector.owlvit.text_model(input_ids=ids[:, : train_detector.CONTEXT])
        expected = detector.owlvit.text_projection(text_output.pooler_output)
        torch.testing.assert_close(model.encode_text(ids), expected)


def embed_patches(model: Any, images: Tensor) -> Tensor:
    patches = model.visual.conv1(images).flatten(2).transpose(1, 2)
    with_class_token = torch.cat([model.visual.class_embedding.expand(len(images), 1, -1), patches], 1)
    return model.visual.ln_pre(with_class_token + model.visual.positional_embedding)  # type: ignore[no-any-return]


def test_an_unknown_model_is_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["toyworld.training", "detectro"])
    with pytest.raises(SystemExit):
        command.main()
    assert "detectro; known are vae, base_model, detector" in capsys.readouterr().err


def test_the_continue_flag_starts_from_the_published_base_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Path, Path]] = []

    def record_call(scratch: Path, published: Path) -> Path:
        calls.append((scratch, published))
        return tmp_path

    monkeypatch.setattr(command, "_continue_base_model", record_call)
    monkeypatch.setattr(command, "publish", lambda folder, out: 0)
    arguments = ["base_model", "--continue", "--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch")]
    monkeypatch.setattr("sys.argv", ["toyworld.training", *arguments])
    weights = tmp_path / "out" / "base_model" / "weights"
    weights.parent.mkdir(parents=True)
    for text in ("published", "published", "continued"):
        weights.write_text(text)
        command.main()
    assert [published for _, published in calls] == [weights.parent] * 3
    first, repeated, second = (scratch for scratch, _ in calls)
    assert first == repeated, "an interrupted one is resumed"
    assert second != first, "the next one trains the continued model"
    assert tmp_path / "scratch" / "base_model" not in {first, second}, "this folder has the state of another recipe"
    assert {scratch.parent for scratch in (first, second)} == {tmp_path / "scratch"}, "they share the render cache"


def test_all_models_have_the_same_tokenizer(tmp_path: Path) -> None:
    first, second = tokens.build(tmp_path / "a"), tokens.build(tmp_path / "b")
    text = "make the red star on the left a zebra"
    assert first(text).input_ids == second(text).input_ids
    assert first.decode(first(text).input_ids, skip_special_tokens=True) == text
    for folder in ("base_model/tokenizer", "clip", "detector"):
        shipped = CLIPTokenizer.from_pretrained(command.WEIGHTS / folder)
        assert shipped.get_vocab() == first.get_vocab(), folder


def test_a_batch_of_empty_scenes_has_a_finite_loss() -> None:
    logits, predicted_boxes = torch.zeros(2, 64, 3, requires_grad=True), torch.rand(2, 64, 4)
    value = train_detector.loss(logits, predicted_boxes, torch.zeros(2, 3, 4), torch.zeros(2, 3, 3, dtype=torch.bool))
    value.backward()
    assert torch.isfinite(value)


@pytest.mark.slow
def test_a_newly_trained_vocabulary_has_the_words_of_captions(tmp_path: Path) -> None:
    tokens.train_vocabulary(tmp_path)
    tokenizer = CLIPTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    ids = tokenizer("a big red star on the left, zebra").input_ids
    assert len(tokenizer.get_vocab()) <= tokens.N_TOKENS
    assert tokenizer.decode(ids[1:8]) == "a big red star on the left"
    assert len(ids) < 18  # each word of a caption is one token; other words are split
