"""Kept pairs are exported, read by `datasets`, and imported again as equal pairs."""

import gc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml

from emuedit import cli
from emuedit.data import data_card
from emuedit.data.formats import pair_export
from emuedit.data.formats.pair_export import export_pairs
from emuedit.data.formats.pair_format import FormatError
from emuedit.data.png import decode_png, encode_png
from emuedit.data.publish import publish, read_folder, read_summary, scratch_folder
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import write_shard
from emuedit.stages import dataset

INSTRUCTPIX2PIX_COLUMNS = ("original_prompt", "original_image", "edit_prompt", "edited_prompt", "edited_image")


def make_pair(n: int, dino: float | None) -> Pair:
    pixels = np.random.default_rng(n).integers(0, 256, (2, 8, 10, 3), np.uint8)
    return Pair(
        instruction_id=f"i{n}", parent_ids=(f"i{n}", f"c{n}"), task="local", instruction=f"make it {n}", source_caption="a dog",
        target_caption="a cat", seed=2**62 + n, model_revision="m", recipe={"candidate": n, "mask": {"w_p": 0.1}},
        source=encode_png(pixels[0]), target=encode_png(pixels[1]), mask=None if n % 2 else encode_png(pixels[0, :, :, 0]),
        scores={"dino": dino, "l1": None},
    )  # fmt: skip


@pytest.fixture
def kept_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Pair]:
    """The kept pairs of three shards; the second shard has none."""
    monkeypatch.chdir(tmp_path)
    shards = [[make_pair(0, 0.9), make_pair(1, 0.1), make_pair(2, 0.8)], [make_pair(3, None)], [make_pair(5, 0.7)]]
    scratch = scratch_folder(tmp_path, "pairs", "f")
    for number, pairs in enumerate(shards):
        write_shard(scratch / f"shard-{number:05d}.parquet", pairs, Pair)
    publish(scratch, tmp_path / dataset.IN, "pairs", {"world": {"name": "w", "base_model": "p"}}, {})
    params: dict[str, Any] = {"filters": {"default": {"dino": {"min": 0.5}}}, "rank_by": "dino", "sheet_pairs": 1}
    params |= {"reassignment": None, "licences": {"base_model": "MIT"}}
    dataset.run(dataset.DatasetParams.model_validate(params), tmp_path)
    return [shards[0][0], shards[0][2], shards[2][0]]


@pytest.mark.slow
def test_an_export_is_imported_as_the_same_pairs(kept_pairs: list[Pair], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "out"]) == 0
    assert capsys.readouterr().out == "out: {'pairs': 3}\n"
    assert cli.main(["import", "emuedit", "out", "in"]) == 0
    assert list(read_folder("in", Pair, verify=True)) == kept_pairs


@pytest.mark.slow
def test_the_verdicts_of_one_shard_are_in_memory_at_a_time(
    kept_pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, read_kept = [], pair_export._read_kept

    def count(path: Path, verdicts: list[Verdict]) -> Any:
        gc.collect()
        counts.append(sum(type(thing) is Verdict for thing in gc.get_objects()))
        return read_kept(path, verdicts)

    gc.collect()
    before = sum(type(thing) is Verdict for thing in gc.get_objects())
    monkeypatch.setattr(pair_export, "_read_kept", count)
    export_pairs(tmp_path / "out", tmp_path)
    assert [n - before for n in counts] == [3, 1]


@pytest.mark.slow
def test_datasets_reads_pictures(kept_pairs: list[Pair], tmp_path: Path) -> None:
    export_pairs(tmp_path / "out", tmp_path)
    files = sorted(file.name for file in (tmp_path / "out").glob("*.parquet"))
    assert files == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    for rows in (
        datasets.load_dataset(
            "parquet", data_files=str(tmp_path / "out/train-*.parquet"), split="train", cache_dir=str(tmp_path)
        ),
        datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path)),  # by the front matter of README.md
    ):
        assert rows.features["edited_image"] == rows.features["mask"] == datasets.Image()
        assert rows["pair_id"] == [pair.id for pair in kept_pairs]
        np.testing.assert_array_equal(np.array(rows[1]["original_image"]), decode_png(kept_pairs[1].source))
        assert rows[2]["mask"] is None
        assert (rows[0]["score_dino"], rows[0]["score_l1"], rows[0]["task"]) == (0.9, None, "local")
        assert tuple(rows.features)[:5] == INSTRUCTPIX2PIX_COLUMNS


def test_the_readme_has_front_matter_and_the_data_card(kept_pairs: list[Pair], tmp_path: Path) -> None:
    export_pairs(tmp_path / "out", tmp_path)
    _, front, text = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    front_matter = yaml.safe_load(front)
    assert (front_matter["license"], front_matter["size_categories"]) == ("mit", ["n<1K"])
    assert front_matter["task_categories"] == ["image-to-image"]
    assert front_matter["configs"][0]["data_files"] == [{"split": "train", "path": "train-*.parquet"}]
    assert text.strip().startswith((tmp_path / dataset.OUT / data_card.CARD).read_text().strip())
    assert all(f"`{name}`" in text for name in ("original_prompt", "parent_ids", "mask"))
    assert (tmp_path / "out/sheet_local.png").exists()


@pytest.mark.parametrize(
    ("parts", "licences", "expected"),
    [
        (("base_model",), {}, "unknown"),
        (("captions", "llm", "base_model", "clip"), {"captions": "MIT", "llm": "MIT", "base_model": "MIT"}, "mit"),
        (("base_model",), {"base_model": "CreativeML OpenRAIL-M"}, "creativeml-openrail-m"),
        (("captions", "base_model"), {"base_model": "MIT"}, "other"),
        (("captions", "base_model"), {"captions": "MIT", "base_model": "Apache-2.0"}, "other"),
        (("base_model", "detector"), {"base_model": "MIT", "detector": "Apache-2.0"}, "other"),
        (("captions",), {"captions": "our own"}, "other"),
    ],
)
def test_the_licence_of_a_part_is_not_that_of_the_dataset(
    parts: tuple[str, ...], licences: dict[str, str], expected: str
) -> None:
    """The hub showed the only stated licence, which may not be that of the captions, and ids that it does not know."""
    assert pair_export._hub_licence(dict.fromkeys(parts, "x"), licences) == expected


def test_an_export_keeps_the_unfinished_work_of_another_folder(
    kept_pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pair_export, "publish", None)
        with pytest.raises(TypeError):
            export_pairs(tmp_path / "a/out", tmp_path)
    unfinished = [*(tmp_path / "scratch").rglob("train-*.parquet")]
    export_pairs(tmp_path / "b/out", tmp_path)
    assert len(unfinished) == 2
    assert [*(tmp_path / "scratch").rglob("train-*.parquet")] == unfinished


def test_verdicts_of_other_pairs_and_used_folders_are_refused(kept_pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep me")
    with pytest.raises(FormatError, match="which has other contents"):
        export_pairs(tmp_path / "notes", tmp_path)
    scratch = scratch_folder(tmp_path, "pairs", "f")
    for number in range(3):
        write_shard(scratch / f"shard-{number:05d}.parquet", [make_pair(7 + number, 0.9)], Pair)
    publish(scratch, tmp_path / pair_export.PAIRS, "pairs", {}, {})
    with pytest.raises(FormatError, match="got those of other pairs"):
        export_pairs(tmp_path / "out", tmp_path)
    assert (tmp_path / "notes/mine.txt").exists()


@pytest.mark.slow
def test_the_command_line_names_missing_arguments(kept_pairs: list[Pair], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "out"]) == 0
    for words, message in (
        (["emuedit", "out", "in", "--task", "local"], "omit --task and --router"),
        (["ultraedit", "out", "in"], "add --task or --router"),
        (["ultraedit", "out", "in", "--task", "superres"], "want a task that editors are trained on, got superres"),
        (["ultraedit", "out", "in", "--task", "local"], "missing ['clip_sim_dir'"),
        (["ultraedit", "data", "in", "--files", "none.parquet", "--task", "local"], "want Parquet files none.parquet"),
    ):
        assert cli.main(["import", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_router_assigns_the_tasks(
    kept_pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from emuedit.predictor import task_predictor

    class FakePredictor:
        def predict(self, texts: list[str]) -> list[task_predictor.TaskPrediction]:
            return [task_predictor.TaskPrediction("remove" if "2" in text else "add", 0.9, refused="5" in text) for text in texts]

    monkeypatch.setattr(task_predictor, "load", lambda folder, device: FakePredictor())
    publish(scratch_folder(tmp_path, "router", "f00d"), tmp_path / "models/router", "router", {}, {})
    export_pairs(tmp_path / "out", tmp_path)
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "out/train-*.parquet"), split="train", cache_dir=str(tmp_path)
    ).select_columns(list(INSTRUCTPIX2PIX_COLUMNS))
    rows.to_parquet(tmp_path / "plain/train.parquet")
    assert cli.main(["import", "instructpix2pix", "plain", "in", "--router", "models/router", "--size", "8"]) == 0
    assert {pair.instruction: pair.task for pair in read_folder("in", Pair)} == {
        "make it 0": "add", "make it 2": "remove", "make it 5": "add",
    }  # fmt: skip
    assert "import: the task predictor refuses 1 of 3 instructions, such as 'make it 5'; their pairs" in capsys.readouterr().out
    assert f"by router {read_summary('models/router').key}" in Path("in/card.md").read_text()
