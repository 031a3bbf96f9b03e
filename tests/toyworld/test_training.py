import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from emuedit import models
from emuedit.models import image_tensors
from toyworld.scenes import render
from toyworld.scenes.scene import numbers, scenes
from toyworld.training import __main__ as command
from toyworld.training import detection_metrics as found
from toyworld.training import detection_phrases, train_clip, train_depth, train_detector, train_dino, train_segmenter
from toyworld.training import tokenizer as tokens
from toyworld.training.render_cache import rendered
from toyworld.training.training_run import Recipe, device, train

POOL = 60
TRAINED = {
    "detector": train_detector,
    "segmenter": train_segmenter,
    "clip": train_clip,
    "dino": train_dino,
    "depth": train_depth,
}


def tiny(recipe: Recipe) -> Recipe:
    return replace(recipe, steps=2, batch=3)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model after two steps, published as the command does."""
    scratch, out = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("weights")
    for name, module in TRAINED.items():
        made = module.run(scratch / name, tiny(module.RECIPE), POOL)  # type: ignore[attr-defined]
        command.publish(made, out / name)
    return {name: out / name for name in TRAINED}


@pytest.fixture
def x() -> Tensor:
    return image_tensors.from_uint8(render.images(scenes(numbers("held_out", 0, 3))))


def test_the_detector_loads_and_finds(published: dict[str, Path], x: Tensor) -> None:
    from emuedit.models import detector as adapter

    one, two, none = adapter.load(str(published["detector"])).detect(
        x, [["red star", "card with the letter A"], ["person"], []], 0.0
    )
    assert len(one) == 64
    assert set(one.phrase.tolist()) <= {0, 1}
    assert (two.phrase == 0).all()
    assert len(none) == 0


def test_the_segmenter_loads_and_cuts_out(published: dict[str, Path], x: Tensor) -> None:
    from emuedit.models import segmenter as adapter

    box = torch.tensor([[10.0, 12.0, 40.0, 50.0]])
    got = adapter.load(str(published["segmenter"])).segment(x, [box, box.repeat(2, 1), box[:0]])
    assert [tuple(one.masks.shape) for one in got] == [(1, 64, 64), (2, 64, 64), (0, 64, 64)]


def test_prompts_of_a_batch_are_decoded_as_sam_decodes_them_one_by_one(x: Tensor) -> None:
    torch.manual_seed(0)
    model = train_segmenter.build().eval()
    boxes = torch.tensor([[10.0, 12.0, 40.0, 50.0], [1.0, 2.0, 30.0, 20.0]])
    shown = (x[:2] + 1) * 127.5
    with torch.no_grad():
        grids = model.image_encoder(model.preprocess(shown))
        prompted = train_segmenter.embed(model, boxes, torch.zeros(2, 1, 2), torch.tensor([False, False]))
        logits, guessed = train_segmenter.decode(model, grids, prompted)
        records = [{"image": shown[i], "original_size": (64, 64), "boxes": boxes[i : i + 1]} for i in range(2)]
        want = model(records, multimask_output=False)
    torch.testing.assert_close(logits[:, :1], torch.cat([one["low_res_logits"] for one in want]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guessed[:, :1], torch.cat([one["iou_predictions"] for one in want]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_the_judges_load_and_embed(name: str, published: dict[str, Path], x: Tensor) -> None:
    from importlib import import_module

    judge = import_module(f"{models.__name__}.{name}").load(str(published[name]))
    torch.testing.assert_close(judge.embed_images(x).norm(dim=-1), torch.ones(3))
    if name == "clip":
        assert judge.embed_texts(["a star", "a very long word " * 40]).shape == (2, 128)


def test_the_depth_judge_loads_and_looks(published: dict[str, Path], x: Tensor) -> None:
    from emuedit.models import depth as adapter

    got = adapter.load(str(published["depth"])).depth(x)
    assert got.shape == (3, 64, 64)
    assert got.min() >= 0
    assert got.max() <= 1


def test_weights_are_published_in_half_precision(published: dict[str, Path]) -> None:
    files = [file for folder in published.values() for file in folder.rglob("*.safetensors")]
    assert len(files) == len(TRAINED)
    for file in files:
        assert {value.dtype for value in load_file(file).values() if value.is_floating_point()} == {torch.float16}
    assert sum(file.stat().st_size for file in files) < 14e6


def test_nothing_is_published_of_weights_beyond_half_precision(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "made").mkdir()
    save_file({"w": torch.tensor([1e6])}, tmp_path / "made" / "model.safetensors")
    with pytest.raises(OverflowError, match="float16"):
        command.publish(tmp_path / "made", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class KilledError(Exception):
    pass


def detector_training(scratch: Path, until: int | None = None) -> dict[str, Tensor]:
    """Four steps of the detector, or killed before step `until`, with the state saved after every step."""
    torch.manual_seed(0)
    model = train_detector.build()
    tokenizer = tokens.build(scratch.parent / "tokenizer")
    all_scenes, known = rendered(scratch.parent / "pool", POOL)
    ids = tokenizer(["red star", "a card"], padding=True, return_tensors="pt").input_ids
    meant = torch.from_numpy(detection_phrases.means([detection_phrases.Phrase(4, 0), detection_phrases.Phrase(8)], all_scenes))

    def loss_at(step: int) -> Tensor:
        if step == until:
            raise KilledError
        rows = np.random.default_rng(step).integers(POOL, size=4)
        x = train_detector.jittered(image_tensors.from_uint8(known.images[rows])).to(device())
        logits, boxes = train_detector.look(model, x, ids.to(device()))
        return train_detector.loss(logits, boxes, torch.from_numpy(known.rows(rows).boxes).to(device()), meant[rows].to(device()))

    return train(model, loss_at, Recipe(steps=4, batch=4, lr=1e-3, warmup_steps=2), scratch, save_every_s=-1).state_dict()


def test_a_killed_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = detector_training(tmp_path / "whole")
    with pytest.raises(KilledError):
        detector_training(tmp_path / "killed", until=2)
    resumed = detector_training(tmp_path / "killed")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_pool_is_drawn_anew_when_the_world_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, known = rendered(tmp_path, 10)
    np.testing.assert_array_equal(known.images, render.truth(scenes(numbers("train", 0, 10))).images)
    real = render.truth

    def darker(some: Any) -> render.Truth:
        return replace(real(some), images=real(some).images // 2)

    monkeypatch.setattr("toyworld.training.render_cache.truth", darker)
    np.testing.assert_array_equal(rendered(tmp_path, 10)[1].images, known.images // 2)


def test_phrases_mean_the_objects_they_were_said_of() -> None:
    import random

    all_scenes = scenes(numbers("train", 0, 200))
    say = random.Random(0)
    for n, slot in np.argwhere(all_scenes.present):
        phrase = detection_phrases.about(all_scenes, n, slot, say)
        assert detection_phrases.means([phrase], all_scenes[n : n + 1])[0, slot, 0], phrase.text()
    asked = detection_phrases.ask(all_scenes, 50, say)
    assert len({phrase.text() for phrase in asked}) == 50


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        (detection_phrases.Phrase(4, 0, 1, 1), "big red striped star"),
        (detection_phrases.Phrase(8, variant=0), "card with the letter A"),
        (detection_phrases.Phrase(9, 3, variant=3), "green person waving"),
        (detection_phrases.Phrase(9, variant=0), "person with arms up"),
        (detection_phrases.Phrase(colour=1), "orange object"),
    ],
)
def test_phrases_are_worded_as_captions_are(phrase: detection_phrases.Phrase, text: str) -> None:
    assert phrase.text() == text


def answers(score: Callable[[bool], float]) -> float:
    """Average precision of a detector that proposes every true box for every phrase."""
    from emuedit.models.detector import Detections

    all_scenes = scenes(numbers("held_out", 0, 40))
    boxes = torch.from_numpy(render.truth(all_scenes).boxes)
    asked = [found._asked(all_scenes, n, full=True) for n in range(40)]
    results = []
    for n, phrases in enumerate(asked):
        meant = detection_phrases.means(phrases, all_scenes[n : n + 1])[0]
        pairs = [(s, p) for s in np.flatnonzero(all_scenes.present[n]) for p in range(len(phrases))]
        pairs.sort(key=lambda pair: -score(meant[pair]))
        slots, said = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        results.append(Detections(boxes[n, slots], torch.tensor([score(meant[pair]) for pair in pairs]), said))
    return found.average_precision(all_scenes, boxes, asked, results)


def test_average_precision_is_one_for_the_truth_and_low_for_guesses() -> None:
    assert answers(lambda right: 0.9 if right else 0.1) == pytest.approx(1.0)
    assert answers(lambda right: 0.1 if right else 0.9) < 0.5


def test_what_is_said_of_a_map_names_no_colour(tmp_path: Path) -> None:
    import random

    from toyworld.scenes.palette import COLOURS

    all_scenes = scenes(numbers("train", 0, 50))
    for kind in ("depth", "sketch", "contour", "pose"):
        for n in range(50):
            assert not set(train_clip.spoken(all_scenes, n, kind, random.Random(n)).split()) & set(COLOURS)


def test_clip_starts_from_the_detectors_towers(tmp_path: Path) -> None:
    tokenizer = tokens.build(tmp_path / "tokenizer")
    torch.manual_seed(0)
    owl, model = train_detector.build().eval(), train_clip.build().eval()
    train_detector.save(owl, tokenizer, tmp_path / "owl")
    train_clip.borrow(model, tmp_path / "owl")
    shown, ids = torch.rand(2, 3, 64, 64), tokenizer(["red star", "a card"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        seen = owl.owlvit.vision_model(pixel_values=shown)
        torch.testing.assert_close(
            model.visual.ln_post(model.visual.transformer(_embedded(model, shown)))[:, 0], seen.pooler_output
        )
        read = owl.owlvit.text_projection(owl.owlvit.text_model(input_ids=ids[:, : train_detector.CONTEXT]).pooler_output)
        torch.testing.assert_close(model.encode_text(ids), read)


def _embedded(model: Any, shown: Tensor) -> Tensor:
    patches = model.visual.conv1(shown).flatten(2).transpose(1, 2)
    with_class = torch.cat([model.visual.class_embedding.expand(len(shown), 1, -1), patches], 1)
    return model.visual.ln_pre(with_class + model.visual.positional_embedding)  # type: ignore[no-any-return]


def test_the_command_knows_its_models(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["foundation", "detectro"])
    with pytest.raises(SystemExit):
        command.main()
    assert "detectro; known are vae, base_model, detector" in capsys.readouterr().err


def test_recipes_and_configs_are_kept_beside_the_weights(published: dict[str, Path]) -> None:
    kept = json.loads((published["segmenter"] / "config.json").read_text())
    assert kept["image_size"] == 64


def test_every_model_reads_the_same_tokens(tmp_path: Path) -> None:
    first, again = tokens.build(tmp_path / "a"), tokens.build(tmp_path / "b")
    text = "make the red star on the left a zebra"
    assert first(text).input_ids == again(text).input_ids
    assert first.decode(first(text).input_ids, skip_special_tokens=True) == text
    for folder in ("base_model/tokenizer", "clip", "detector"):
        shipped = CLIPTokenizer.from_pretrained(command.OUT / folder)
        assert shipped.get_vocab() == first.get_vocab(), folder


def test_a_batch_of_empty_scenes_has_a_loss() -> None:
    logits, found = torch.zeros(2, 64, 3, requires_grad=True), torch.rand(2, 64, 4)
    value = train_detector.loss(logits, found, torch.zeros(2, 3, 4), torch.zeros(2, 3, 3, dtype=torch.bool))
    value.backward()
    assert torch.isfinite(value)


def test_a_vocabulary_can_be_learnt_again(tmp_path: Path) -> None:
    tokens.learn(tmp_path)
    learnt = CLIPTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    ids = learnt("a big red star on the left, zebra").input_ids
    assert len(learnt.get_vocab()) <= tokens.N_TOKENS
    assert learnt.decode(ids[1:8]) == "a big red star on the left"
    assert len(ids) < 18  # the world's words are whole, others are spelt
