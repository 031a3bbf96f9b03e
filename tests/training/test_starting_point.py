"""Continuing an editor: its weights and rows, the sample of its pairs, and the record of its ancestors."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emuedit import config
from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Pair, Verdict
from emuedit.editor import checkpoint, package_folder
from emuedit.editor.task_embedding import TaskEmbedding
from emuedit.models import text_to_image
from emuedit.models.text_to_image import TextToImageModel
from emuedit.tracking import registry
from emuedit.training import starting_point
from emuedit.training.batches import latent_files, replay
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.starting_point import Encoders, StartError, StartingPoint
from tests.stages.workspace import toy_world
from tests.training.tiny_pairs import make_pair, write_pairs


@pytest.fixture(scope="module")
def base_model() -> TextToImageModel:
    return text_to_image.load(toy_world()["base_model"])


@pytest.fixture(scope="module")
def editor_folder(base_model: TextToImageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An editor of two tasks with a third one from inversion."""
    net = checkpoint.from_base_model(base_model, 8, ("remove", "local"))
    with torch.no_grad():
        net.unet.conv_in.weight += 0.01
    net.table.add("contour", torch.ones(8))
    folder = tmp_path_factory.mktemp("models") / "editor"
    checkpoint.save(net, base_model.pipeline, folder, torch.float32)
    return folder


def world(**changes: Any) -> config.World:
    return config.World(**toy_world() | changes)


@pytest.mark.slow
def test_an_editor_is_continued_with_its_weights_and_rows_and_gets_rows_for_new_tasks(
    editor_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # whose generators are not touched
    start = starting_point.resolve(str(editor_folder), world(), Path.cwd())
    net, parts = start.editor(("local", "add"), 32, True, 0)
    assert net.table.names == ("remove", "local", "add"), "its own tasks first; the row of an inversion fits other weights"
    saved, again = checkpoint.load(str(editor_folder), "cpu", torch.float32)[0], start.editor(("local", "add"), 32, True, 0)[0]
    assert torch.equal(net.table.v[:2], saved.table.v[:2])
    assert torch.equal(net.table.v, again.table.v), "the new row follows from the seed"
    assert torch.equal(net.table.to_token.weight, saved.table.to_token.weight)
    assert all(torch.equal(value, saved.unet.state_dict()[name]) for name, value in net.unet.state_dict().items())
    assert parts.unet is net.unet
    with pytest.raises(StartError, match=r"want train.change_mask true, as the editor .* got false"):
        start.editor(("local",), 32, False, 0)


def test_where_a_training_starts(editor_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    base = world().base_model
    assert starting_point.resolve("base_model", world(), Path.cwd()) == StartingPoint(
        "base_model", config.resolve_path(base, Path.cwd())
    )
    with pytest.raises(StartError, match="want a base editor"):
        starting_point.resolve("base_editor", world(base_editor=None), tmp_path)
    assert starting_point.resolve("base_editor", world(base_editor=str(editor_folder)), tmp_path).folder == str(editor_folder)
    monkeypatch.setattr(package_folder, "find_champion", lambda: None)
    assert starting_point.resolve("champion", world(base_editor=str(editor_folder)), tmp_path).reference == "base_editor"
    assert starting_point.resolve("champion", world(base_editor=None), Path.cwd()).reference == "base_model"
    assert "no champion is registered yet; starting from base_model" in capsys.readouterr().out
    monkeypatch.setattr(package_folder, "find_champion", lambda: (editor_folder.parent, "models:/emuedit-editor/3"))
    start = starting_point.resolve("champion", world(), tmp_path)
    assert (start.reference, start.folder) == ("models:/emuedit-editor/3", str(editor_folder))
    weights = TaskEmbedding.load_config(editor_folder / "task_embedding")["weights"]
    assert start.ancestors == ({"reference": "models:/emuedit-editor/3", "weights": weights},)


@pytest.mark.slow
def test_an_alias_is_recorded_as_the_version_that_it_names(
    editor_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def get_model_version_by_alias(self, name: str, alias: str) -> Any:
            return SimpleNamespace(name=name, version={"champion": "3"}[alias], tags={}, run_id="run")

    monkeypatch.setattr(registry, "client", Client)
    monkeypatch.setattr(registry, "download_version", lambda uri: {"models:/emuedit-editor/3": editor_folder.parent}[uri])
    start = starting_point.resolve("models:/emuedit-editor@champion", world(), tmp_path)
    assert start.ancestors[-1]["reference"] == start.reference == "models:/emuedit-editor/3"


@pytest.mark.slow
def test_a_rebuild_starts_from_the_registered_model_of_its_time(
    editor_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stages see no registry, where `champion` would become the base editor and `models:/...` an error."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(package_folder.PARENT_ENV, f"models:/emuedit-editor/3={editor_folder.parent}")
    for name in ("champion", "models:/emuedit-editor/3"):
        start = starting_point.resolve(name, world(base_editor="none"), tmp_path)
        assert (start.reference, start.folder) == ("models:/emuedit-editor/3", str(editor_folder))
        assert start.ancestors[-1]["reference"] == "models:/emuedit-editor/3"
    assert starting_point.resolve("base_model", world(), tmp_path).reference == "base_model"


@pytest.fixture
def cache(base_model: TextToImageModel, tmp_path: Path) -> LatentCache:
    pairs = [make_pair(n, (64, 64)) for n in range(36)]
    latent_files.build(TrainingPairs(*write_pairs(tmp_path / "old", pairs)), base_model, tmp_path / "cache")
    return LatentCache(tmp_path / "cache", 0.0)


@pytest.mark.slow
def test_the_sample_of_pairs_is_balanced_and_stable(cache: LatentCache, tmp_path: Path) -> None:
    assert sorted(Counter(replay.sample(cache, 9).values()).values()) == [2, 2, 2, 3]
    assert set(replay.sample(cache, 5)) < set(replay.sample(cache, 9)), "the first ones stay"
    replay.write(tmp_path / "replay", cache, [tmp_path / "old/data/pairs"], None, 9)
    written = {pair.id for pair in read_folder(tmp_path / "replay/pairs", Pair)}
    assert written == set(replay.sample(cache, 9))
    assert read_summary(tmp_path / "replay/pairs").counts == {"kept": 9}
    verdicts = {verdict.pair_id: verdict.task for verdict in read_folder(tmp_path / "replay/verdicts", Verdict)}
    assert verdicts == replay.sample(cache, 9)
    replay.write(tmp_path / "replay", cache, [tmp_path / "old/data/pairs"], None, 1000)
    assert read_summary(tmp_path / "replay/verdicts").counts == {"kept": len(cache.train)}, "not as many as were asked for"


@pytest.mark.slow
def test_a_pair_that_is_continued_is_sampled_once(cache: LatentCache, tmp_path: Path) -> None:
    folders, first, second = [tmp_path / "old/data/pairs"], tmp_path / "first", tmp_path / "second"
    replay.write(first, cache, folders, None, 9)
    replay.write(second, cache, folders, first, 9)
    for folder in (first, second):
        for name, kind, key in (("pairs", Pair, "id"), ("verdicts", Verdict, "pair_id")):
            rows: list[Any] = list(read_folder(folder / name, kind))
            assert Counter(getattr(row, key) for row in rows) == Counter(replay.sample(cache, 9).keys())


@pytest.mark.slow
def test_earlier_pairs_are_drawn_with_their_share_and_never_twice(
    cache: LatentCache, base_model: TextToImageModel, tmp_path: Path
) -> None:
    replay.write(tmp_path / "replay", cache, [tmp_path / "old/data/pairs"], None, 12)
    new = [make_pair(n, (64, 64)) for n in range(24, 72)]  # 24 to 35 are in both
    folders, dataset = write_pairs(tmp_path / "new", new)
    latent_files.build(TrainingPairs(folders, dataset, tmp_path / "replay"), base_model, tmp_path / "cache")
    both = LatentCache(tmp_path / "cache", 0.0)
    ids = both.train.pair_ids.tolist()
    assert len(ids) == len(set(ids))
    earlier = set(replay.sample(cache, 12)) - {pair.id for pair in new}
    assert {ids[i] for i in np.flatnonzero(both.train.is_replay)} == earlier
    for share in (0.0, 0.25):
        order = both.order(16, 0.5, 0, replay_share=share)
        drawn = np.concatenate([order.batch(step)[0] for step in range(60)])
        assert abs(both.train.is_replay[drawn].mean() - share) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("is_editor", [False, True])
def test_only_what_encodes_goes_to_the_device(is_editor: bool, editor_folder: Path) -> None:
    """The meta device takes the place of a GPU."""
    start = starting_point.resolve(str(editor_folder) if is_editor else "base_model", world(), Path.cwd())
    encoders = Encoders.on("meta", start.editor(("local",), 8, True, 0)[1].pipeline)
    parts = (encoders, encoders.vae, encoders.text_encoder, encoders.encode_text(["make it red"]).hidden)
    assert {part.device.type for part in parts} == {"meta"}
    assert encoders.unet.device.type == "cpu"


@pytest.mark.slow
def test_encoders_of_an_editor_and_of_its_base_model_encode_the_same(editor_folder: Path, base_model: TextToImageModel) -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for start in (
        starting_point.resolve("base_model", world(), Path.cwd()),
        starting_point.resolve(str(editor_folder), world(), Path.cwd()),
    ):
        encoders = Encoders.on("cpu", start.editor(("local",), 8, True, 0)[1].pipeline)
        assert torch.equal(encoders.encode(images), base_model.encode(images))
        assert torch.equal(encoders.encode_text(["a"]).hidden, base_model.encode_text(["a"]).hidden)
