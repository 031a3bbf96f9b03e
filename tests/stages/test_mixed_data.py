"""Imported pairs on their way into an editor: import, dataset, train."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from emuedit.data.filters import FiltersError
from emuedit.data.formats import pair_format, pair_import
from emuedit.data.formats.row_conversion import ImportOptions
from emuedit.data.publish import publish, read_folder, scratch_folder
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import write_shard
from emuedit.stages import dataset, train
from emuedit.stages.dataset import DatasetError
from emuedit.training.batches.latent_cache import LatentCache
from tests.stages.scored_pairs import make_pair, make_params, publish_toy_pairs, read_verdicts
from tests.stages.workspace import load_params, skip_estimates
from toyworld.edits import exact_dataset

SMALL = {
    "start": "base_model", "steps": 2, "processes": 1, "batch_size": 4, "dtype": "float32", "device": "cpu",
    "held_out_share": 0.0, "task_embedding_dim": 8,
}  # fmt: skip
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def make_image(value: int) -> dict[str, Any]:
    """A picture of one grey value, as `datasets` stores it."""
    stream = io.BytesIO()
    Image.fromarray(np.full((48, 72, 3), value, np.uint8)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def import_pairs(root: Path, n: int) -> list[Pair]:
    """A dataset in the format of InstructPix2Pix, imported to `data/imported` at 64 px, as `style`."""
    rows = [{"original_prompt": f"a dog {k}", "edit_prompt": f"make it {k}", "edited_prompt": f"a cat {k}"} for k in range(n)]
    table = pa.Table.from_pylist(rows)
    for name, first in (("original_image", 0), ("edited_image", 100)):
        table = table.append_column(name, pa.array([make_image(first + k) for k in range(n)], IMAGE))
    pq.write_table(table, root / "train.parquet")
    options = ImportOptions(pair_format.get_format("instructpix2pix"), 64, "all style", lambda texts: ["style"] * len(texts))
    pair_import.import_pairs(options, [root / "train.parquet"], root / "data/imported", root)
    return list(read_folder(root / "data/imported", Pair))


@pytest.fixture
def generated_pairs(tmp_path: Path) -> list[Pair]:
    """Exact pairs in `data/pairs`, with a score."""
    exact_dataset.write_dataset(tmp_path, {"local": 6})
    pairs = [dataclasses.replace(pair, scores={"dino": 0.7}) for pair in read_folder(tmp_path / "data/pairs", Pair)]
    scratch = scratch_folder(tmp_path, "pairs", "scored")
    write_shard(scratch / "shard-00000.parquet", pairs, Pair)
    publish(scratch, tmp_path / "data/pairs", "pairs", {}, {})
    return pairs


@pytest.mark.slow
@pytest.mark.usefixtures("no_mlflow")
def test_imported_pairs_are_filtered_and_trained_on(
    generated_pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_estimates(monkeypatch)
    imported_pairs = import_pairs(tmp_path, 3)
    mix = {"data/imported": {"default": {}}}
    section = {"filters": {"default": {"dino": {"min": 0.5}}}, "mix": mix, "rank_by": "dino", "reassignment": None}
    dataset.run(dataset.DatasetParams.model_validate(section), tmp_path)
    verdicts = list(read_folder(tmp_path / dataset.OUT, Verdict, verify=True))
    pairs = generated_pairs + imported_pairs
    assert [(verdict.pair_id, verdict.kept) for verdict in verdicts] == [(pair.id, True) for pair in pairs]
    card = (tmp_path / dataset.OUT / "card.md").read_text()
    assert "| `data/imported` | `timbrooks/instructpix2pix-clip-filtered` | not stated | 3 | 3 | default: none |" in card
    summary = train.run(load_params(train.TrainParams, "train", **SMALL), tmp_path)
    assert summary.counts["pairs"] == len(pairs)
    assert set(summary.params["data"]) == {"data/pairs", "data/dataset", "data/imported"}
    (latents,) = (tmp_path / "scratch/latents").iterdir()
    rows = LatentCache(latents, 0.0).train
    assert rows.pair_ids.tolist() == [pair.id for pair in pairs]
    assert rows.task.tolist() == [0] * 6 + [6] * 3


@pytest.fixture
def scored_pairs(tmp_path: Path) -> list[Pair]:
    """Pairs in `data/pairs`, see `publish_toy_pairs`."""
    return publish_toy_pairs(tmp_path)


def publish_imported(root: Path, name: str, *shards: list[Pair]) -> str:
    """Publish shards of imported pairs to `data/<name>`; returns the folder's name."""
    scratch = scratch_folder(root, name, "f")
    for number, records in enumerate(shards):
        write_shard(scratch / f"shard-{number:05d}.parquet", records, Pair)
    publish(scratch, root / "data" / name, "import", {"source": f"org/{name}", "licence": "MIT"}, {})
    return f"data/{name}"


def make_imported_pair(instruction: str, task: str, **scores: float | None) -> Pair:
    return dataclasses.replace(make_pair(instruction, task, 0), scores=scores)


@pytest.mark.slow
def test_mixed_folders_have_their_own_filters(tmp_path: Path, scored_pairs: list[Pair]) -> None:
    scored = [
        make_imported_pair("x", "local", sim=0.9), make_imported_pair("y", "remove", sim=0.1),
        make_imported_pair("z", "local", sim=None),
    ]  # fmt: skip
    plain = [make_imported_pair("v", "style"), make_imported_pair("w", "depth")]
    dataset.run(make_params(), tmp_path)
    alone = {file.name: file.read_bytes() for file in (tmp_path / dataset.OUT).glob("shard-*")}
    mix = {publish_imported(tmp_path, "scored", scored[:2], scored[2:]): {"default": {"sim": {"min": 0.5}}}}
    mix = {publish_imported(tmp_path, "plain", plain): {"default": {}}, **mix}
    summary = dataset.run(make_params(mix=dict(reversed(mix.items()))), tmp_path)
    assert summary.params["mix"] == mix
    verdicts = read_verdicts(tmp_path)
    expected_ids = [pair.id for pair in scored_pairs + plain + scored]
    assert [verdict.pair_id for verdict in verdicts] == expected_ids, "want data/pairs first, then folders by name"
    assert [verdict.kept for verdict in verdicts] == [True, False, True, False, True, True, True, False, False]
    assert [verdict.reasons for verdict in verdicts[6:]] == [(), ("sim_min",), ("sim_missing",)]
    assert (verdicts[6].filters, verdicts[4].filters) == ({"sim": {"min": 0.5}}, {})
    assert verdicts[6].scores == {"dino": None, "l1": None, "direction": None, "sim": 0.9}
    card = (tmp_path / dataset.OUT / "card.md").read_text()
    assert "| `data/plain` | `org/plain` | MIT | 2 | 2 | default: none |" in card
    assert "| `data/scored` | `org/scored` | MIT | 3 | 1 | default: `sim` >= 0.5 |" in card
    assert "Revision of the base_model: `m`." in card
    mixed = {file.name for file in (tmp_path / dataset.OUT).glob("shard-*")}
    assert mixed - set(alone) == {f"shard-mix{n}.parquet" for n in ("1-00000", "2-00000", "2-00001")}
    dataset.run(make_params(), tmp_path)
    assert {file.name: file.read_bytes() for file in (tmp_path / dataset.OUT).glob("shard-*")} == alone


def test_imported_pairs_of_one_instruction_are_no_candidates_of_each_other(tmp_path: Path, scored_pairs: list[Pair]) -> None:
    imported = [dataclasses.replace(make_pair("x", "local", number), scores={}) for number in range(3)]
    assert len({pair.instruction_id for pair in imported}) == 1
    dataset.run(make_params(mix={publish_imported(tmp_path, "plain", imported): {"default": {}}}), tmp_path)
    verdicts = {verdict.pair_id: verdict for verdict in read_verdicts(tmp_path)}
    assert all(verdicts[pair.id].kept for pair in imported)
    assert any("not_best" in verdict.reasons for verdict in verdicts.values())  # of the generated ones


def test_a_filter_on_a_score_that_a_mixed_folder_lacks_is_named(tmp_path: Path, scored_pairs: list[Pair]) -> None:
    folder = publish_imported(tmp_path, "scored", [make_imported_pair("x", "local", sim=0.9)])
    with pytest.raises(FiltersError, match=r"want the scores used in params.yaml: \['dino'\], available: \['sim'\]"):
        dataset.run(make_params(mix={folder: {"default": {"dino": {"min": 0.5}}}}), tmp_path)


def test_a_pair_that_comes_twice_is_an_error(tmp_path: Path, scored_pairs: list[Pair]) -> None:
    folder = publish_imported(tmp_path, "scored", scored_pairs[:2])
    with pytest.raises(DatasetError, match="want every pair once in data/pairs, data/scored, got 2 again"):
        dataset.run(make_params(mix={folder: {"default": {}}}), tmp_path)
    with pytest.raises(ValidationError, match="want folders besides data/pairs"):
        make_params(mix={dataset.IN: {"default": {}}})
