import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from emuedit.data.png import encode_png
from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Caption, Pair, Verdict
from emuedit.data.shards import write_shard
from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextToImageModel
from emuedit.training import latent_cache
from emuedit.training.latent_cache import BatchesError, Cache

SAID = ("make it red", "remove the star on the left", "write A", "make it red", "add a star", "add a ring")
TASKS = ("local", "remove", "text", "local", "add", "add")
KEPT = (True, True, True, False, True, True)


def picture(n: int, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (*size, 3), np.uint8)


def pair(n: int, size: tuple[int, int] = (16, 24)) -> Pair:
    caption = Caption(f"caption {n}", "test", n)
    return Pair(
        instruction_id=f"i{n}", parent_ids=(f"i{n}", caption.id), task="color", instruction=SAID[n % 6], source_caption="a",
        target_caption="b", seed=n, model_revision="test", recipe={}, source=encode_png(picture(2 * n, size)),
        target=encode_png(picture(2 * n + 1, size)), mask=None, scores={},
    )  # fmt: skip


def write(root: Path, pairs: list[Pair], per_shard: int = 4) -> tuple[list[Path], Path]:
    folders = {station: scratch_folder(root, station, "x") for station in ("pairs", "dataset")}
    for number, start in enumerate(range(0, len(pairs), per_shard)):
        some = pairs[start : start + per_shard]
        write_shard(folders["pairs"] / f"shard-{number:05d}.parquet", some, Pair)
        verdicts = [
            Verdict(p.id, kept=KEPT[n % 6], task=TASKS[n % 6], reasons=() if KEPT[n % 6] else ("clip",), gates={}, scores={})
            for n, p in enumerate(some, start)
        ]
        write_shard(folders["dataset"] / f"shard-{number:05d}.parquet", verdicts, Verdict)
    for station, folder in folders.items():
        publish(folder, root / "data" / station, station, {}, {})
    return [root / "data" / "pairs"], root / "data" / "dataset"


def test_what_is_kept_is_encoded_under_the_verdicts_task(make_painter: Callable[[str], TextToImageModel], tmp_path: Path) -> None:
    base_model, pairs = make_painter("toy"), [pair(n) for n in range(6)]
    data = write(tmp_path, pairs)
    latent_cache.build(*data, base_model, tmp_path / "cache")
    cache = Cache(tmp_path / "cache", 0.0)
    kept = [n for n in range(6) if KEPT[n]]
    assert cache.train.pair_ids.tolist() == [pairs[n].id for n in kept]
    assert cache.train.task.tolist() == [0, 1, 7, 2, 2]
    got = cache.batch(cache.train, np.arange(5), np.array([False, True, True, True, False]))
    assert got.ids == tuple(cache.train.pair_ids)
    for i, n in enumerate(kept):
        mirrored = i == 3  # asked of 1, 2, 3; but 1 speaks of the left, and 2 is of letters
        for z, png in ((got.source, picture(2 * n)), (got.target, picture(2 * n + 1))):
            want = base_model.encode(image_tensors.from_uint8(png[:, ::-1].copy() if mirrored else png))
            torch.testing.assert_close(z[i : i + 1], want, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(got.text.hidden[i], base_model.encode_text([SAID[n]]).hidden[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(got.null.hidden, base_model.null_text(1).hidden, rtol=2e-3, atol=2e-3)


def test_sdxl_keeps_its_pooled_text(make_painter: Callable[[str], TextToImageModel], tmp_path: Path) -> None:
    base_model = make_painter("sdxl")
    latent_cache.build(*write(tmp_path, [pair(0)]), base_model, tmp_path / "cache")
    cache = Cache(tmp_path / "cache", 0.0)
    got = cache.batch(cache.train, np.array([0, 0]), np.array([False, True]))
    want = base_model.encode_text([SAID[0]]).pooled
    assert got.text.pooled is not None
    torch.testing.assert_close(got.text.pooled, want.expand(2, -1), rtol=2e-3, atol=2e-3)


def test_a_stopped_encoding_goes_on(
    make_painter: Callable[[str], TextToImageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model, data = make_painter("toy"), write(tmp_path, [pair(n) for n in range(6)], per_shard=2)
    latent_cache.build(*data, base_model, tmp_path / "whole")
    encode, calls = base_model.encode, []

    def dies(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(base_model, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        latent_cache.build(*data, base_model, tmp_path / "cache")
    latent_cache.build(*data, base_model, tmp_path / "cache")
    assert len(calls) == 4, "three shards, one of them twice"
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "cache" / file.name).read_bytes()


def test_pictures_of_two_sizes_are_refused(make_painter: Callable[[str], TextToImageModel], tmp_path: Path) -> None:
    data = write(tmp_path, [pair(0), pair(1, (24, 16))])
    with pytest.raises(BatchesError, match=r"\(16, 24\), got \(24, 16\) in pair"):
        latent_cache.build(*data, make_painter("toy"), tmp_path / "cache")


def test_folders_are_encoded_one_after_another(make_painter: Callable[[str], TextToImageModel], tmp_path: Path) -> None:
    base_model, pairs = make_painter("toy"), [pair(n) for n in range(6)]
    (whole,), dataset = write(tmp_path / "whole", pairs)
    apart = [write(tmp_path / name, some)[0][0] for name, some in (("a", pairs[:4]), ("b", pairs[4:]))]
    latent_cache.build([whole], dataset, base_model, tmp_path / "one")
    latent_cache.build(apart, dataset, base_model, tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_another_size_is_refused_after_a_stop_too(make_painter: Callable[[str], TextToImageModel], tmp_path: Path) -> None:
    data = write(tmp_path, [pair(0), pair(1, (24, 16))], per_shard=1)
    with pytest.raises(BatchesError, match="pictures of one size"):
        latent_cache.build(*data, make_painter("toy"), tmp_path / "cache")
    latent_cache.build(*data, make_painter("toy"), tmp_path / "cache")  # the first shard is done and not read again
    with pytest.raises(BatchesError, match="latents of one size"):
        Cache(tmp_path / "cache", 0.0)


def test_batches_follow_from_seed_and_step_and_balance_tasks(
    make_painter: Callable[[str], TextToImageModel], tmp_path: Path
) -> None:
    data = write(tmp_path, [pair(n) for n in range(60)])
    latent_cache.build(*data, make_painter("toy"), tmp_path / "cache")
    cache = Cache(tmp_path / "cache", 0.0)
    one, again, other = cache.pick(32, 0.0, 3, 7), cache.pick(32, 0.0, 3, 7), cache.pick(32, 0.0, 3, 8)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])
    for balance, want in ((0.0, [8, 8, 8, 8]), (1.0, [6.4, 6.4, 12.8, 6.4])):  # add has 20 pairs, the others 10
        tasks = cache.train.task[np.concatenate([cache.pick(32, balance, 0, step)[0] for step in range(50)])]
        np.testing.assert_allclose(np.bincount(tasks, minlength=8)[[0, 1, 2, 7]] / 50, want, atol=0.1)
    drawn = np.concatenate([cache.pick(32, 0.0, 0, step)[0] for step in range(50)])
    assert len(set(drawn.tolist())) == len(cache.train)


def test_held_out_pairs_never_share_a_caption_with_training(
    make_painter: Callable[[str], TextToImageModel], tmp_path: Path
) -> None:
    data = write(tmp_path, [pair(n) for n in range(60)])
    latent_cache.build(*data, make_painter("toy"), tmp_path / "cache")
    cache = Cache(tmp_path / "cache", 0.3)
    notes = [note for file in sorted((tmp_path / "cache").glob("0*.json")) for note in json.loads(file.read_text())]
    caption = {note["id"]: note["caption_id"] for note in notes}
    train, held = ({caption[i] for i in rows.pair_ids} for rows in (cache.train, cache.held_out))
    assert not train & held
    assert 5 < len(held) < 25
    with pytest.raises(BatchesError, match="all of them held out"):
        Cache(tmp_path / "cache", 0.9999999)


@pytest.mark.parametrize(
    ("task", "said", "may"),
    [
        ("local", "make the ring red", True), ("remove", "remove the RIGHT star", False), ("text", "now it is a B", False),
        ("add", "put a card with the letter A there", False), ("local", "make it brighter", True),
    ],
)  # fmt: skip
def test_what_may_be_mirrored(task: str, said: str, may: bool) -> None:
    assert latent_cache.may_flip(task, said) is may
