import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emuedit.data.png import encode_png
from emuedit.data.shards import ShardError
from emuedit.models.text_to_image import TextToImageModel
from emuedit.training.batches import latent_files, pair_encoding
from emuedit.training.batches.aspect_buckets import AspectBuckets
from emuedit.training.batches.kept_pairs import TrainingPairs
from emuedit.training.batches.latent_cache import LatentCache
from emuedit.training.batches.latent_files import EncodingKeys
from emuedit.training.batches.pair_encoding import PairEncodingError
from tests.repository import ROOT, import_closure
from tests.training.tiny_pairs import KEPT, make_pair, make_picture, write_pairs

MakeBaseModel = Callable[[str], TextToImageModel]
BUCKETS = AspectBuckets.around(16, 2.0, 4)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.slow
def test_an_encoding_that_was_stopped_is_resumed(
    base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_pairs(tmp_path, [make_pair(n) for n in range(6)], per_shard=2)
    latent_files.build(TrainingPairs(*data), base_model, tmp_path / "uninterrupted")
    encode, calls = base_model.encode, []

    def stop_at_the_second_shard(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(base_model, "encode", stop_at_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        latent_files.build(TrainingPairs(*data), base_model, tmp_path / "cache")
    with pytest.raises(FileNotFoundError):
        LatentCache(tmp_path / "cache", 0.0)
    latent_files.build(TrainingPairs(*data), base_model, tmp_path / "cache")
    assert len(calls) == 4, "three shards, one of them twice"
    assert names(tmp_path / "uninterrupted") == names(tmp_path / "cache")
    for file in (tmp_path / "uninterrupted").iterdir():
        assert file.read_bytes() == (tmp_path / "cache" / file.name).read_bytes()


@pytest.mark.slow
def test_several_folders_of_pairs_are_encoded_one_after_another(base_model: TextToImageModel, tmp_path: Path) -> None:
    pairs = [make_pair(n) for n in range(6)]
    (together,), dataset = write_pairs(tmp_path / "together", pairs)
    apart = [write_pairs(tmp_path / name, part)[0][0] for name, part in (("b", pairs[:4]), ("a", pairs[4:]))]
    latent_files.build(TrainingPairs([together], dataset), base_model, tmp_path / "of one folder")
    latent_files.build(TrainingPairs(apart, dataset), base_model, tmp_path / "of two folders")
    assert names(tmp_path / "of one folder") == names(tmp_path / "of two folders")
    for file in (tmp_path / "of one folder").iterdir():
        assert file.read_bytes() == (tmp_path / "of two folders" / file.name).read_bytes()


def test_instructions_that_are_cut_are_told(base_model: TextToImageModel, tmp_path: Path, capsys: Any) -> None:
    length = base_model.tokenizer.model_max_length
    long = dataclasses.replace(make_pair(0), instruction="make it " + length * "very " + "red")
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, [long, make_pair(2)])), base_model, tmp_path / "cache")
    assert f"train: 1 new instructions exceed the text encoder's {length} tokens, such as 'make it very" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_only_what_is_new_is_encoded(base_model: TextToImageModel, tmp_path: Path, encoded: dict[str, Any]) -> None:
    """Shards that stay as they are, and instructions that some shard had before, are taken from the cache."""
    pairs, cache = [make_pair(n) for n in range(6)], tmp_path / "cache"
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs[:4])), base_model, cache)
    assert encoded["pictures"] == [(8, 3, 16, 24)], "three of four pairs are kept, one of them may be mirrored"
    assert sorted(encoded["texts"]) == ["", "make it red", "remove the star on the left", "write A"]
    before = LatentCache(cache, 0.0)
    first = before.batch(before.train, np.arange(3), np.zeros(3, bool))
    encoded["pictures"].clear(), encoded["texts"].clear()

    more = [*pairs, make_pair(6)]
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, more)), base_model, cache)
    assert encoded["pictures"] == [(12, 3, 16, 24)], "the second shard alone: pairs 4, 5 and 6, all mirrored, too"
    assert sorted(encoded["texts"]) == ["add a ring", "add a star"], "the instruction of pair 6 is known"
    after = LatentCache(cache, 0.0)
    assert after.train.pair_ids.tolist() == [pair.id for n, pair in enumerate(more) if KEPT[n % 6]]
    again = after.batch(after.train, np.arange(3), np.zeros(3, bool))
    assert torch.equal(again.target, first.target)
    assert torch.equal(again.text.hidden, first.text.hidden)
    batch = after.batch(after.train, np.array([0, 5]), np.zeros(2, bool))
    assert torch.equal(batch.text.hidden[0], batch.text.hidden[1]), "pairs 0 and 6 have one instruction"

    encoded["pictures"].clear(), encoded["texts"].clear()
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, more)), base_model, cache)
    assert encoded == {"pictures": [], "texts": []}


@pytest.mark.slow
def test_files_that_are_not_in_use_any_more_are_deleted(
    base_model: TextToImageModel, tmp_path: Path, encoded: dict[str, Any]
) -> None:
    pairs, cache = [make_pair(n) for n in range(6)], tmp_path / "cache"
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs[:4])), base_model, cache)
    only_the_first = names(cache)
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), base_model, cache)
    (cache / ".cut-short.16x24.part.npy").touch()
    assert only_the_first < names(cache)
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs[:4])), base_model, cache)
    assert names(cache) == only_the_first

    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs[4:])), base_model, cache)
    encoded["texts"].clear()
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), base_model, cache)
    assert len(encoded["texts"]) == 3, "the texts of the first shard were deleted with it"
    assert len(LatentCache(cache, 0.0).train) == 5


@pytest.mark.slow
@pytest.mark.parametrize(("change", "n_images"), [("picture", [12]), ("buckets", [8, 12])])
def test_a_shard_is_encoded_again_where_its_images_or_sizes_change(
    change: str, n_images: list[int], base_model: TextToImageModel, tmp_path: Path, encoded: dict[str, Any]
) -> None:
    pairs, cache = [make_pair(n) for n in range(7)], tmp_path / "cache"
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), base_model, cache)
    encoded["pictures"].clear()
    if change == "picture":
        pairs[5] = dataclasses.replace(pairs[5], target=encode_png(make_picture(99)))
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), base_model, cache, BUCKETS if change == "buckets" else None)
    assert [shape[0] for shape in encoded["pictures"]] == n_images


def test_pictures_of_several_sizes_go_to_their_buckets(base_model: TextToImageModel, tmp_path: Path, capsys: Any) -> None:
    sizes = [(16, 16), (40, 64), (10, 6), (16, 16), (20, 12), (12, 20)]
    data = write_pairs(tmp_path, [make_pair(n, size) for n, size in enumerate(sizes)], per_shard=6)
    latent_files.build(TrainingPairs(*data), base_model, tmp_path / "cache", BUCKETS)
    cache = LatentCache(tmp_path / "cache", 0.0)
    assert cache.sizes == ((12, 20), (16, 16), (20, 12))
    assert [cache.sizes[i] for i in cache.train.bucket] == [(16, 16), (12, 20), (20, 12), (20, 12), (12, 20)]
    assert "train: 1 of 5 pairs are smaller than their bucket and were enlarged" in capsys.readouterr().out
    arrays = {file.name.split(".")[2]: np.load(file).shape for file in (tmp_path / "cache").glob("*.[0-9]*x*.npy")}
    assert arrays == {"16x16": (2, 2, 8, 8, 8), "12x20": (3, 2, 8, 6, 10), "20x12": (3, 2, 8, 10, 6)}


@pytest.mark.parametrize("buckets", [None, AspectBuckets.around(16, 2.0, 4)])
def test_pictures_of_the_base_models_size_are_encoded_bit_for_bit(
    buckets: AspectBuckets | None, base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[torch.Tensor] = []
    encode = base_model.encode
    monkeypatch.setattr(base_model, "encode", lambda images: (pictures.append(images), encode(images))[1])
    latent_files.build(TrainingPairs(*write_pairs(tmp_path, [make_pair(0, (16, 16))])), base_model, tmp_path / "cache", buckets)
    (images,) = pictures
    pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().numpy().astype(np.uint8)
    for i, n in ((0, 0), (1, 1)):
        np.testing.assert_array_equal(pixels[i], make_picture(n, (16, 16)))
        np.testing.assert_array_equal(pixels[2 + i], make_picture(n, (16, 16))[:, ::-1])


@pytest.mark.slow
def test_no_more_pixels_than_the_budget_are_encoded_or_decoded_at_a_time(
    base_model: TextToImageModel, tmp_path: Path, encoded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_pairs(tmp_path, [make_pair(6 * n, (64, 64)) for n in range(8)], per_shard=8)
    monkeypatch.setitem(pair_encoding.PIXELS_PER_BATCH, "cpu", 8 * 64**2)
    latent_files.build(TrainingPairs(*data), base_model, tmp_path / "two pairs at a time")
    assert [shape[0] for shape in encoded["pictures"]] == [8, 8, 8, 4], "seven of eight pairs are kept"
    encoded["pictures"].clear()
    monkeypatch.setitem(pair_encoding.PIXELS_PER_BATCH, "cpu", 64**2 - 1)
    decoded: list[int] = []
    decode = pair_encoding._decode
    monkeypatch.setattr(pair_encoding, "_decode", lambda *arguments: (decoded.append(1), decode(*arguments))[1])
    n_decoded_when_encoded: list[int] = []
    encode = pair_encoding._encode
    monkeypatch.setattr(
        pair_encoding, "_encode", lambda *arguments: (n_decoded_when_encoded.append(len(decoded)), encode(*arguments))[1]
    )
    latent_files.build(TrainingPairs(*data), base_model, tmp_path / "one picture at a time")
    assert [shape[0] for shape in encoded["pictures"]] == [1] * 28
    n_encoded = np.repeat(range(1, 8), 4)
    assert all(pair <= n <= pair + 1 for n, pair in zip(n_decoded_when_encoded, n_encoded, strict=True))
    for name in names(tmp_path / "one picture at a time"):
        if "64x64" in name:
            singles, pairs_of_two = (
                np.load(tmp_path / folder / name) for folder in ("one picture at a time", "two pairs at a time")
            )
            np.testing.assert_allclose(singles, pairs_of_two, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pictures(base_model: TextToImageModel, tmp_path: Path) -> None:
    """The pixels of one shard would take 20 times what is allowed here beyond the PNGs and latents."""
    flat = [encode_png(np.full((256, 256, 3), n, np.uint8)) for n in range(64)]
    pairs = [dataclasses.replace(make_pair(6 * n), source=flat[n], target=flat[n - 1]) for n in range(64)]
    data = write_pairs(tmp_path, pairs, per_shard=64)
    del pairs
    tracemalloc.start()
    latent_files.build(TrainingPairs(*data), base_model, tmp_path / "cache", AspectBuckets.around(32, 1.0, 4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 64 * 2 * 3 * 256**2 > 20 * 2**20
    assert peak < 5 * 2**20


def test_sizes_of_a_pair_that_do_not_fit_are_refused(base_model: TextToImageModel, tmp_path: Path) -> None:
    pair = dataclasses.replace(make_pair(0), target=encode_png(make_picture(1, (24, 16))))
    with pytest.raises(PairEncodingError, match=rf"of one size, got .*\(16, 24\) and \(24, 16\) px in pair {pair.id}"):
        latent_files.build(TrainingPairs(*write_pairs(tmp_path / "a", [pair])), base_model, tmp_path / "cache")
    odd = make_pair(0, (16, 23))
    with pytest.raises(PairEncodingError, match=rf"multiples of 2 px, got .*\(16, 23\) px in pair {odd.id}; resize images to"):
        latent_files.build(TrainingPairs(*write_pairs(tmp_path / "b", [odd])), base_model, tmp_path / "cache")


def test_latents_that_are_not_finite_are_refused_by_the_id_of_their_pair(
    base_model: TextToImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [make_pair(n) for n in (0, 1)]
    encode = base_model.encode

    def overflow(images: torch.Tensor) -> torch.Tensor:
        z = encode(images)
        z[2] = 1e6  # beyond float16; the first picture of the second pair
        return z

    monkeypatch.setattr(base_model, "encode", overflow)
    with pytest.raises(PairEncodingError, match=f"finite latents in float16, got others for pair {pairs[1].id}"):
        latent_files.build(TrainingPairs(*write_pairs(tmp_path, pairs)), base_model, tmp_path / "cache")


@pytest.mark.slow
def test_under_autocast_the_same_is_encoded_to_rounding(make_base_model: MakeBaseModel, tmp_path: Path) -> None:
    data, batches = write_pairs(tmp_path, [make_pair(n) for n in range(6)]), []
    for name, enabled in (("bfloat16", True), ("float32", False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            latent_files.build(TrainingPairs(*data), make_base_model("sdxl"), tmp_path / name)
        cache = LatentCache(tmp_path / name, 0.0)
        batches.append(cache.batch(cache.train, np.arange(5), np.zeros(5, bool)))
    in_bfloat16, in_float32 = batches
    assert not torch.equal(in_bfloat16.text.hidden, in_float32.text.hidden)
    torch.testing.assert_close(in_bfloat16.text.hidden, in_float32.text.hidden, rtol=0.05, atol=0.05)
    torch.testing.assert_close(in_bfloat16.target, in_float32.target, rtol=0.05, atol=0.05)


def test_a_folder_that_was_not_published_is_refused(base_model: TextToImageModel, tmp_path: Path) -> None:
    pairs, _ = write_pairs(tmp_path, [make_pair(0)])
    with pytest.raises(ShardError, match="want a published folder"):
        latent_files.build(TrainingPairs(pairs, tmp_path / "nothing"), base_model, tmp_path / "cache")


@pytest.mark.slow
def test_the_code_that_the_key_covers_is_what_encoding_imports() -> None:
    listed = [ROOT / name for name in latent_files.CODE]
    files = {file for path in listed for file in (path.rglob("*.py") if path.is_dir() else [path])}
    assert all(path.exists() for path in listed)
    missing = {str(file.relative_to(ROOT)) for file in import_closure("emuedit.training.batches.latent_files") - files}
    assert not missing, f"want in latent_files.CODE: {sorted(missing)}"


@pytest.mark.slow
def test_the_key_of_a_cache_covers_what_encodes_the_number_format_and_code(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for part in ("vae", "unet"):
        (model / part).mkdir(parents=True)
        (model / part / "weights").write_text("1")

    def key(name: str = str(model), dtype: str = "float32") -> str:
        return EncodingKeys.of(name, dtype, tmp_path).latents

    keys = [key()]
    assert key() == keys[0]
    keys += [key(dtype="bfloat16"), key("org/model")]
    (model / "unet" / "weights").write_text("2")
    (model / "text_encoder").mkdir()
    (model / "text_encoder" / "weights").write_text("1")
    assert key() == keys[0], "the U-Net encodes nothing, text encoders no images"
    texts = EncodingKeys.of(str(model), "float32", tmp_path).texts
    (model / "vae" / "weights").write_text("2")
    keys.append(key())
    assert EncodingKeys.of(str(model), "float32", tmp_path).texts == texts
    (model / "text_encoder" / "weights").write_text("2")
    assert EncodingKeys.of(str(model), "float32", tmp_path).texts != texts
    (tmp_path / "emuedit/training/batches").mkdir(parents=True)
    (tmp_path / "emuedit/training/batches/pair_encoding.py").write_text("# edited\n")  # the workspace's code comes first
    keys.append(key())
    assert len(set(keys)) == 5
