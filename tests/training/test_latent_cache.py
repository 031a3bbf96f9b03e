import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit import config
from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import rng
from emuedit.stages import train
from emuedit.training import latent_cache
from emuedit.training.latent_cache import LatentCache, LatentCacheError
from tests.editor.tiny_pipelines import build_pipeline
from tests.training.tiny_pairs import INSTRUCTIONS, KEPT, make_pair, make_picture, write_pairs

ROOT = Path(__file__).parents[2]
MakeBaseModel = Callable[[str], TextToImageModel]


def test_kept_pairs_are_encoded_with_the_task_of_their_verdict(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model, pairs = make_base_model("toy"), [make_pair(n) for n in range(6)]
    latent_cache.build(*write_pairs(tmp_path, pairs), base_model, tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache", 0.0)
    kept = [n for n in range(6) if KEPT[n]]
    assert cache.train.pair_ids.tolist() == [pairs[n].id for n in kept]
    assert cache.train.task.tolist() == [0, 1, 7, 2, 2]
    batch = cache.batch(cache.train, np.arange(5), np.array([False, True, True, True, False]))
    assert batch.ids == tuple(cache.train.pair_ids)
    for i, n in enumerate(kept):
        mirrored = i == 3  # asked for 1, 2 and 3; but 1 names the left side, and 2 has letters
        for z, picture in ((batch.source, make_picture(2 * n)), (batch.target, make_picture(2 * n + 1))):
            want = base_model.encode(image_tensors.from_uint8(picture[:, ::-1].copy() if mirrored else picture))
            torch.testing.assert_close(z[i : i + 1], want, rtol=2e-3, atol=2e-3)
        want_text = base_model.encode_text([INSTRUCTIONS[n]]).hidden[0]
        torch.testing.assert_close(batch.text.hidden[i], want_text, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(batch.null.hidden, base_model.null_text(1).hidden, rtol=2e-3, atol=2e-3)


def test_the_pooled_text_of_sdxl_is_kept(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("sdxl")
    latent_cache.build(*write_pairs(tmp_path, [make_pair(0)]), base_model, tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache", 0.0)
    batch = cache.batch(cache.train, np.array([0, 0]), np.array([False, True]))
    want = base_model.encode_text([INSTRUCTIONS[0]]).pooled
    assert want is not None
    assert batch.text.pooled is not None
    torch.testing.assert_close(batch.text.pooled, want.expand(2, -1), rtol=2e-3, atol=2e-3)


def test_an_encoding_that_was_stopped_is_resumed(
    make_base_model: MakeBaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model, data = make_base_model("toy"), write_pairs(tmp_path, [make_pair(n) for n in range(6)], per_shard=2)
    latent_cache.build(*data, base_model, tmp_path / "uninterrupted")
    encode, calls = base_model.encode, []

    def stop_at_the_second_shard(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(base_model, "encode", stop_at_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        latent_cache.build(*data, base_model, tmp_path / "cache")
    latent_cache.build(*data, base_model, tmp_path / "cache")
    assert len(calls) == 4, "three shards, one of them twice"
    for file in (tmp_path / "uninterrupted").iterdir():
        assert file.read_bytes() == (tmp_path / "cache" / file.name).read_bytes()


def test_pictures_of_two_sizes_are_refused(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, [make_pair(0), make_pair(1, (24, 16))])
    with pytest.raises(LatentCacheError, match=r"\(16, 24\), got \(24, 16\) in pair"):
        latent_cache.build(*data, make_base_model("toy"), tmp_path / "cache")


def test_another_size_is_refused_after_a_stop_too(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, [make_pair(0), make_pair(1, (24, 16))], per_shard=1)
    with pytest.raises(LatentCacheError, match="pictures of one size"):
        latent_cache.build(*data, make_base_model("toy"), tmp_path / "cache")
    latent_cache.build(*data, make_base_model("toy"), tmp_path / "cache")  # the first shard is finished and not read again
    with pytest.raises(LatentCacheError, match="latents of one size"):
        LatentCache(tmp_path / "cache", 0.0)


def test_several_folders_of_pairs_are_encoded_one_after_another(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model, pairs = make_base_model("toy"), [make_pair(n) for n in range(6)]
    (together,), dataset = write_pairs(tmp_path / "together", pairs)
    apart = [write_pairs(tmp_path / name, part)[0][0] for name, part in (("a", pairs[:4]), ("b", pairs[4:]))]
    latent_cache.build([together], dataset, base_model, tmp_path / "of one folder")
    latent_cache.build(apart, dataset, base_model, tmp_path / "of two folders")
    for file in (tmp_path / "of one folder").iterdir():
        assert file.read_bytes() == (tmp_path / "of two folders" / file.name).read_bytes()


def test_batches_depend_on_seed_and_step_alone_and_balance_tasks(cache_folder: Path) -> None:
    cache = LatentCache(cache_folder, 0.0)
    first, same, other = cache.choose(32, 0.0, 3, 7), cache.choose(32, 0.0, 3, 7), cache.choose(32, 0.0, 3, 8)
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first[0], other[0])
    for balance, want in ((0.0, [8, 8, 8, 8]), (1.0, [6.4, 6.4, 12.8, 6.4])):  # add has 20 pairs, the others 10
        tasks = cache.train.task[np.concatenate([cache.choose(32, balance, 0, step)[0] for step in range(50)])]
        np.testing.assert_allclose(np.bincount(tasks, minlength=8)[[0, 1, 2, 7]] / 50, want, atol=0.1)
    chosen = np.concatenate([cache.choose(32, 0.0, 0, step)[0] for step in range(50)])
    assert len(set(chosen.tolist())) == len(cache.train)


def test_a_batch_is_chosen_without_sorting_the_pairs_again(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs are grouped by task once; each step then looks at no more rows than its batch has."""
    cache = LatentCache(cache_folder, 0.0)
    task, size, seed, step = cache.train.task, 32, 3, 7
    random = rng("editor", "batch", seed, step)  # the definition: a task for each stratum, then a pair of that task
    tasks_of_pairs = sorted(set(task.tolist()))
    strata = (np.arange(size) + random.random(size)) / size
    edges = np.cumsum([np.sqrt((task == name).sum()) for name in tasks_of_pairs])
    chosen_tasks = [tasks_of_pairs[i] for i in np.searchsorted(edges, strata * edges[-1], side="right")]
    pairs_of = {name: np.flatnonzero(task == name) for name in tasks_of_pairs}
    u = random.random(size)
    want = [pairs_of[name][int(u[i] * len(pairs_of[name]))] for i, name in enumerate(chosen_tasks)]
    for name in ("argsort", "sort", "bincount"):
        monkeypatch.setattr(latent_cache.np, name, lambda *_, **__: pytest.fail("the pairs were sorted again"))
    positions, _ = cache.choose(size, 0.5, seed, step)
    np.testing.assert_array_equal(positions, want)


def test_held_out_pairs_never_share_a_caption_with_training(cache_folder: Path) -> None:
    cache = LatentCache(cache_folder, 0.3)
    notes = [note for file in sorted(cache_folder.glob("0*.json")) for note in json.loads(file.read_text())]
    caption = {note["id"]: note["caption_id"] for note in notes}
    train_captions, held_out_captions = ({caption[i] for i in rows.pair_ids} for rows in (cache.train, cache.held_out))
    assert not train_captions & held_out_captions
    assert 5 < len(held_out_captions) < 25
    with pytest.raises(LatentCacheError, match="all of them held out"):
        LatentCache(cache_folder, 0.9999999)


@pytest.mark.parametrize(
    ("task", "instruction", "may"),
    [
        ("local", "make the ring red", True), ("remove", "remove the RIGHT star", False), ("text", "now it is a B", False),
        ("add", "put a card with the letter A there", False), ("local", "make it brighter", True),
    ],
)  # fmt: skip
def test_which_pairs_may_be_mirrored(task: str, instruction: str, may: bool) -> None:
    assert latent_cache.may_flip(task, instruction) is may


class StoppedError(Exception):
    """Raised in place of the training, after the pairs were encoded."""


@pytest.fixture
def encode_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, int]]:
    """Runs the stage `train` up to the training; returns the name of its latent cache and the number of encoded batches."""
    write_pairs(tmp_path, [make_pair(n) for n in range(6)])
    for kind in ("toy", "sd15"):
        build_pipeline(kind).save_pretrained(tmp_path / kind)
    params = config.load(train.TrainParams, "train", ROOT / "params.yaml")
    n_encoded: list[int] = []
    encode = TextToImageModel.encode
    monkeypatch.setattr(TextToImageModel, "encode", lambda model, images: (n_encoded.append(1), encode(model, images))[1])

    def stop(*arguments: Any) -> None:
        raise StoppedError

    monkeypatch.setattr(train, "_train", stop)

    def run(base_model: str = "toy", **changes: Any) -> tuple[str, int]:
        n_encoded.clear()
        world = params.world.model_copy(update={"base_model": str(tmp_path / base_model)})
        settings = {"world": world, "device": "cpu", "dtype": "float32", "processes": 1, "held_out_share": 0.0}
        with pytest.raises(StoppedError):
            train.run(params.model_copy(update=settings | changes), tmp_path)
        (folder,) = (tmp_path / "scratch" / "latents").iterdir()
        assert len(LatentCache(folder, 0.0).train) == 5
        return folder.name, len(n_encoded)

    return run


def test_latents_are_reused_for_other_params_of_the_training(encode_for_training: Callable[..., tuple[str, int]]) -> None:
    name, n_encoded = encode_for_training()
    assert n_encoded == 2, "one batch for each of two shards"
    assert encode_for_training() == (name, 0)
    assert encode_for_training(lr=1e-5, steps=7, batch_size=2, seed=3) == (name, 0)


def test_latents_of_another_number_format_are_not_reused_but_deleted(
    encode_for_training: Callable[..., tuple[str, int]],
) -> None:
    name, _ = encode_for_training()
    other_name, n_encoded = encode_for_training(dtype="bfloat16")
    assert other_name != name
    assert n_encoded == 2


def test_latents_of_another_base_model_are_not_reused_but_deleted(
    encode_for_training: Callable[..., tuple[str, int]],
) -> None:
    name, _ = encode_for_training()
    other_name, n_encoded = encode_for_training("sd15")
    assert other_name != name
    assert n_encoded == 2


def test_latents_of_other_weights_under_the_same_name_are_not_reused_but_deleted(
    encode_for_training: Callable[..., tuple[str, int]], tmp_path: Path
) -> None:
    name, _ = encode_for_training()
    torch.manual_seed(1)
    build_pipeline("toy").save_pretrained(tmp_path / "toy")
    other_name, n_encoded = encode_for_training()
    assert other_name != name
    assert n_encoded == 2


@pytest.mark.parametrize("path", ["emuedit/models/vae_latents.py", "emuedit/training/latent_cache.py", "emuedit/data/png.py"])
def test_latents_of_other_code_are_not_reused_but_deleted(
    path: str, encode_for_training: Callable[..., tuple[str, int]], tmp_path: Path
) -> None:
    """Code of the workspace comes before the installed one, as in a checkout in which a file was edited."""
    folder = tmp_path / Path(path).parent
    folder.mkdir(parents=True)
    for file in (ROOT / path).parent.glob("*.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    name, _ = encode_for_training()
    assert encode_for_training() == (name, 0)
    (tmp_path / path).write_text((ROOT / path).read_text() + "# edited\n")
    other_name, n_encoded = encode_for_training()
    assert other_name != name
    assert n_encoded == 2


def test_latents_of_other_pairs_are_not_reused_but_deleted(
    encode_for_training: Callable[..., tuple[str, int]], tmp_path: Path
) -> None:
    name, _ = encode_for_training()
    write_pairs(tmp_path, [make_pair(n) for n in range(6, 12)])
    other_name, n_encoded = encode_for_training()
    assert other_name != name
    assert n_encoded == 2
