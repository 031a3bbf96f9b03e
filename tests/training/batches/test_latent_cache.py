import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextToImageModel
from emuedit.tasks import TASKS
from emuedit.training.batches import latent_cache, latent_files, mirroring, text_files
from emuedit.training.batches.aspect_buckets import AspectBuckets
from emuedit.training.batches.kept_pairs import TrainingPairs, pair_shards
from emuedit.training.batches.latent_cache import LatentCache, LatentCacheError
from tests.training.tiny_pairs import INSTRUCTIONS, KEPT, make_pair, make_picture, write_pairs

MakeBaseModel = Callable[[str], TextToImageModel]
SIZES = ((16, 16), (13, 30), (40, 24))


@pytest.mark.slow
def test_kept_pairs_are_encoded_with_the_task_of_their_verdict(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model, pairs = make_base_model("toy"), [make_pair(n) for n in range(6)]
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), base_model, tmp_path / "cache")
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
        torch.testing.assert_close(batch.text.hidden[i].float(), want_text, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(batch.null.hidden.float(), base_model.null_text(1).hidden, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_the_pooled_text_of_sdxl_is_kept(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    base_model = make_base_model("sdxl")
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, [make_pair(0)])), base_model, tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache", 0.0)
    batch = cache.batch(cache.train, np.array([0, 0]), np.array([False, True]))
    want = base_model.encode_text([INSTRUCTIONS[0]]).pooled
    assert want is not None
    assert batch.text.pooled is not None
    torch.testing.assert_close(batch.text.pooled.float(), want.expand(2, -1), rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_a_batch_takes_whole_instructions_of_several_shards(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    pairs = [replace(make_pair(n), instruction="make it brighter " * (1 + n // 4)) for n in range(12)]
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), make_base_model("toy"), tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache", 0.0)
    positions = np.array([len(cache.train) - 1, 0, len(cache.train) // 2, 0])
    batch = cache.batch(cache.train, positions, positions < 0)
    by_id = {pair.id: pair for pair in pairs}
    assert batch.instructions == tuple(by_id[pair_id].instruction for pair_id in batch.ids)
    assert len(set(batch.instructions)) == 3


@pytest.fixture
def sized_folder(make_base_model: MakeBaseModel, tmp_path: Path) -> Path:
    """The cache of 30 kept pairs of three sizes, one size a shard."""
    pairs = [make_pair(n, SIZES[n // 4 % 3]) for n in range(36)]
    buckets = AspectBuckets.around(16, 2.0, 4)
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), make_base_model("toy"), tmp_path / "cache", buckets)
    return tmp_path / "cache"


@pytest.mark.slow
def test_a_batch_has_one_size_and_sdxls_size_conditions_of_it(sized_folder: Path) -> None:
    cache = LatentCache(sized_folder, 0.0)
    assert cache.sizes == ((12, 20), (16, 16), (20, 12))
    order, seen = cache.order(4, 0.5, seed=0), set()
    for step in range(2 * order.batches_per_epoch):
        positions, flip = order.batch(step)
        batch = cache.batch(cache.train, positions, flip)
        size = cache.sizes[cache.train.bucket[positions[0]]]
        seen.add(size)
        assert batch.source.shape == batch.target.shape == (4, 8, size[0] // 2, size[1] // 2)
        assert batch.sizes is not None
        want = {
            (16, 16): [16, 16, 0, 0, 16, 16],
            (12, 20): [13, 30, 0, 4, 12, 20],  # scaled to 12 x 28 px; of the width, 4 are cut off at each side
            (20, 12): [40, 24, 0, 0, 20, 12],
        }
        assert batch.sizes.tolist() == [want[size]] * 4
    assert seen == set(cache.sizes)


@pytest.mark.slow
def test_the_crop_of_a_mirrored_picture_is_mirrored(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    """16 x 23 px become 16 x 16: 3 columns are cut off at the left and 4 at the right."""
    base_model = make_base_model("toy")
    data = write_pairs(tmp_path, [make_pair(0, (16, 23))])
    latent_files.build(TrainingPairs(*data), base_model, tmp_path / "cache", AspectBuckets.around(16, 1.0, 4))
    cache = LatentCache(tmp_path / "cache", 0.0)
    batch = cache.batch(cache.train, np.array([0, 0]), np.array([False, True]))
    assert batch.sizes is not None
    assert batch.sizes.tolist() == [[16, 23, 0, 3, 16, 16], [16, 23, 0, 4, 16, 16]]
    picture = make_picture(1, (16, 23))
    for i, pixels in enumerate((picture[:, 3:19], picture[:, ::-1][:, 4:20])):
        want = base_model.encode(image_tensors.from_uint8(pixels.copy()))
        torch.testing.assert_close(batch.target[i : i + 1], want, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_pairs_of_two_sizes_are_no_batch(sized_folder: Path) -> None:
    cache = LatentCache(sized_folder, 0.0)
    positions = np.arange(len(cache.train))
    with pytest.raises(LatentCacheError, match=r"want pairs of one size in a batch, got .*\(12, 20\), \(16, 16\), \(20, 12\)"):
        cache.batch(cache.train, positions, positions < 0)
    parts = cache.by_bucket(cache.train, positions)
    assert sorted(np.concatenate(parts)) == positions.tolist()
    assert [cache.batch(cache.train, part, part < 0).source.shape[2:] for part in parts] == [(6, 10), (8, 8), (10, 6)]


def test_batches_depend_on_seed_and_step_alone_and_balance_tasks(cache_folder: Path) -> None:
    cache, resumed = LatentCache(cache_folder, 0.0), LatentCache(cache_folder, 0.0)
    order = cache.order(32, 0.0, 3)
    for step in (7, 8):
        for array, other in zip(order.batch(step), resumed.order(32, 0.0, 3).batch(step), strict=True):
            np.testing.assert_array_equal(array, other)
    assert not np.array_equal(order.batch(7)[0], order.batch(8)[0])
    for balance, want in ((0.0, [8, 8, 8, 8]), (1.0, [6.4, 6.4, 12.8, 6.4])):  # add has 20 pairs, the others 10
        order = cache.order(32, balance, 0)
        tasks = cache.train.task[np.concatenate([order.batch(step)[0] for step in range(50)])]
        np.testing.assert_allclose(np.bincount(tasks, minlength=8)[[0, 1, 2, 7]] / 50, want, atol=0.05)


def test_task_weights_are_factors_of_how_often_a_task_is_drawn(cache_folder: Path) -> None:
    cache = LatentCache(cache_folder, 0.0)
    order = cache.order(30, 0.0, 0, {"add": 2.0, "text": 0.0, "pose": 9.0})  # no pair has the task pose
    tasks = cache.train.task[np.concatenate([order.batch(step)[0] for step in range(40)])]
    np.testing.assert_allclose(np.bincount(tasks, minlength=8)[[0, 1, 2, 7]] / 40, [7.5, 7.5, 15, 0], atol=0.05)
    with pytest.raises(LatentCacheError, match=r"want task_weights for tasks from local, .*got 'ad'; did you mean 'add'\?"):
        cache.order(30, 0.0, 0, {"ad": 2.0})


def test_only_tasks_with_pairs_to_train_on_are_tasks_of_the_cache(cache_folder: Path) -> None:
    cache = LatentCache(cache_folder, 0.3)
    assert cache.tasks == ("local", "remove", "add", "text")
    assert cache.task_names == tuple(task.name for task in TASKS)
    trained = cache.with_tasks(cache.tasks)
    assert trained.tasks == trained.task_names == cache.tasks
    for rows, all_rows in ((trained.train, cache.train), (trained.held_out, cache.held_out)):
        assert [trained.tasks[i] for i in rows.task] == [TASKS[i].name for i in all_rows.task]
    positions, flip = trained.order(8, 1.0, 0).batch(3)
    batch = trained.batch(trained.train, positions, flip)
    assert [cache.tasks[i] for i in batch.tasks.tolist()] == [TASKS[i].name for i in cache.train.task[positions]]
    with pytest.raises(LatentCacheError, match=r"want a row for every task with training pairs, got none for \['text'\]"):
        cache.with_tasks(("local", "remove", "add"))


@pytest.mark.slow
def test_held_out_pairs_of_a_task_that_is_not_trained_are_left_out(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    pairs = [make_pair(n) for n in range(60)]
    is_held_out = [latent_files.group_seed(pair.parent_ids[1]) < 0.3 * 2**63 for pair in pairs]
    local = [pair for n, pair in enumerate(pairs) if not is_held_out[n]][:1]  # the task of a pair follows from its place
    removed = [pair for n, pair in enumerate(pairs) if is_held_out[n]][:1]
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, local + removed)), make_base_model("toy"), tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache", 0.3)
    assert (cache.tasks, cache.held_out.task.tolist()) == (("local",), [1])
    assert len(cache.with_tasks(cache.tasks).held_out) == 0


def test_pairs_of_a_task_that_cannot_be_trained_are_refused(
    make_base_model: MakeBaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.training.tiny_pairs.TASKS", ("superres",))
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, [make_pair(0)])), make_base_model("toy"), tmp_path / "cache")
    with pytest.raises(LatentCacheError, match=r"want kept pairs of the tasks local, .*; got pairs of superres"):
        LatentCache(tmp_path / "cache", 0.0)


def test_latents_stay_on_disk(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many shards there are, opening reads none of their latents, and no more files than a limit are mapped at a time."""
    monkeypatch.setattr(latent_cache, "OPEN_FILES", 5)
    load, opened = np.load, []

    def record(file: Path, mmap_mode: str | None = None) -> Any:
        opened.append((file.name, mmap_mode))
        return load(file, mmap_mode=mmap_mode)

    monkeypatch.setattr(np, "load", record)
    cache = LatentCache(cache_folder, 0.0)
    assert not [name for name, _ in opened if "x" in name.split(".")[1].replace("texts", "") or "hidden" in name]
    opened.clear()
    order = cache.order(8, 0.5, 0)
    for step in range(4):
        cache.batch(cache.train, *order.batch(step))
    assert {mode for _, mode in opened} == {"r"}
    assert cache._open.cache_info().currsize == 5


def test_the_index_takes_few_bytes_a_pair(tmp_path: Path) -> None:
    n_shards, n_pairs = 20, 2000
    index = {"shards": [f"{n:016x}" for n in range(n_shards)], "replay": [], "texts": [], "null_text": "null"}
    (tmp_path / latent_files.INDEX_FILE).write_text(json.dumps(index))
    np.save(text_files.text_file(tmp_path, "t", "texts"), np.zeros(1, np.uint64))
    index["texts"].append("t")
    (tmp_path / latent_files.INDEX_FILE).write_text(json.dumps(index))
    for key in index["shards"]:
        rows = np.zeros(n_pairs, [*latent_files.PAIR, ("task", "S5"), ("instruction", "S200")])
        rows["task"], rows["size"], rows["instruction"] = b"local", (512, 512), b"i" * 200
        np.save(latent_files.pairs_file(tmp_path, key), rows)
    del rows
    tracemalloc.start()
    cache = LatentCache(tmp_path, 0.0)
    n_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache.train) == n_shards * n_pairs
    assert n_bytes < 40 * n_shards * n_pairs


def test_captions_of_one_image_are_held_out_together(tmp_path: Path) -> None:
    """Several captions described one photograph, and its map was learned under one of them and held out under another."""
    recipe = {"kind": "annotate", "candidate": 0, "image": "photos/1.jpg", "image_hash": "0" * 16}
    pairs = [replace(make_pair(number), recipe=recipe) for number in range(3)] + [make_pair(3)]
    assert len({pair.parent_ids[1] for pair in pairs}) > 1
    write_pairs(tmp_path, pairs)
    (shard,) = pair_shards([tmp_path / "data/pairs"])
    groups = shard.image_groups()
    assert [groups[pair.id] for pair in pairs] == [*["0" * 16] * 3, pairs[3].parent_ids[1]]


def test_held_out_pairs_never_share_a_caption_with_training(cache_folder: Path) -> None:
    cache = LatentCache(cache_folder, 0.3)
    caption = {pair.id: pair.parent_ids[1] for pair in map(make_pair, range(60))}
    train_captions, held_out_captions = ({caption[i] for i in rows.pair_ids} for rows in (cache.train, cache.held_out))
    assert not train_captions & held_out_captions
    assert held_out_captions == {c for c in train_captions | held_out_captions if latent_files.group_seed(c) < 0.3 * 2**63}
    assert 5 < len(held_out_captions) < 25
    with pytest.raises(LatentCacheError, match="all of them held out"):
        LatentCache(cache_folder, 0.9999999)


def test_of_many_pairs_a_bounded_number_is_held_out(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 500,000 pairs 25,000 were held out, and at most eight of each task are measured."""
    everything = LatentCache(cache_folder, 0.3).held_out.pair_ids.tolist()
    monkeypatch.setattr(latent_files, "MAX_HELD_OUT_PAIRS", 6)
    bounded = LatentCache(cache_folder, 0.3)
    held_out, kept = bounded.held_out.pair_ids.tolist(), {*bounded.train.pair_ids, *bounded.held_out.pair_ids}
    assert 1 <= len(held_out) < 12 < len(everything)
    assert set(held_out) < set(everything)
    bound = 6 / len(kept) * 2**63
    pairs = [pair for pair in map(make_pair, range(60)) if pair.id in kept]
    assert set(held_out) == {pair.id for pair in pairs if latent_files.group_seed(pair.parent_ids[1]) < bound}


@pytest.mark.parametrize(("n_pairs", "share"), [(1, 0.05), (40_000, 0.05), (500_000, 0.004), (10_000_000, 0.0002)])
def test_small_trainings_hold_out_the_whole_share(n_pairs: int, share: float) -> None:
    assert latent_files.held_out_bound(0.05, n_pairs) / 2**63 == pytest.approx(share)


@pytest.mark.parametrize(
    ("task", "instruction", "may"),
    [
        ("local", "make the ring red", True), ("remove", "remove the RIGHT star", False), ("text", "now it is a B", False),
        ("add", "put a card with the letter A there", False), ("local", "make it brighter", True),
        ("remove", "remove the leftmost star", False), ("local", "turn it counterclockwise", False), ("add", "add signs", False),
        ("local", "paint the number 7 red", False), ("add", "add three 7s", False),
        ("add", "add a board with “OPEN” on it", False),
        ("add", "write 'hello'", False), ("local", "make the dog's hat red", True), ("texture", "give it a rough texture", True),
        ("local", "spread the bread upright, keep it bright", True), ("remove", "remove the company logos", False),
        ("add", "add a tower in the northeast", False), ("remove", "remove the south-west wing", False),
        ("local", "turn the M into an N", False), ("local", "make the A red", False), ("add", "add handwritten notes", False),
        ("add", "add the alphabet", False), ("add", "add Chinese characters", False), ("add", "add a slogan", False),
        ("remove", "remove the graffiti", False), ("remove", "remove the subtitles", False),
        ("local", "blur the license plate", False), ("local", "mirror the image", False), ("local", "flip the image", False),
        ("remove", "remove the watermark", False), ("add", "stamp it", False), ("add", "print the date below", False),
        ("add", "turn it into a poster", False), ("style", "posterize the image", True), ("add", "add a price tag", False),
        ("local", "update the stage", True), ("remove", "delete the timestamp", False), ("add", "add our emblem", False),
        ("add", "add a clock", False), ("add", "can I have a star as well?", True), ("local", "A red star, please", True),
        ("local", "make the T-shirt red", True), ("local", "lock the door", True), ("local", "turn Anna's hat blue", True),
        ("remove", "entferne das linke Auto", False), ("remove", "entferne linke Lampe", False),
        ("remove", "左の車を消す", False),
        ("remove", "enlève la voiture de gauche", False), ("remove", "quita el coche de la derecha", False),
        ("remove", "удали левую машину", False), ("local", "make it a cafe\u0301", False), ("add", "add ٣ stars", False),
        ("local", "the dog’s hat — make it red…", True), ("remove", "destroy the dining table", True),
    ],
)  # fmt: skip
def test_which_pairs_may_be_mirrored(task: str, instruction: str, may: bool) -> None:
    assert mirroring.may_flip(task, instruction) is may
