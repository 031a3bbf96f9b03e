"""Imported pairs on their way into an editor: import, dataset, train."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from emuedit import config
from emuedit.data.formats import pair_format, pair_import
from emuedit.data.formats.row_conversion import ImportOptions
from emuedit.data.publish import publish, read_folder, scratch_folder
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import write_shard
from emuedit.stages import dataset, train
from emuedit.training.latent_cache import Cache
from toyworld.edits import exact_dataset

ROOT = Path(__file__).parents[2]
SMALL = {"steps": 2, "processes": 1, "batch": 4, "dtype": "float32", "device": "cpu", "held_out_share": 0.0, "task_width": 8}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(value: int) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(np.full((48, 72, 3), value, np.uint8)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def bring(root: Path, n: int) -> list[Pair]:
    """InstructPix2Pix as its makers publish it, imported to `data/theirs` at 64 px, as `style`."""
    rows = [{"original_prompt": f"a dog {k}", "edit_prompt": f"make it {k}", "edited_prompt": f"a cat {k}"} for k in range(n)]
    table = pa.Table.from_pylist(rows)
    for name, first in (("original_image", 0), ("edited_image", 100)):
        table = table.append_column(name, pa.array([picture(first + k) for k in range(n)], IMAGE))
    pq.write_table(table, root / "train.parquet")
    wanted = ImportOptions(pair_format.get_format("instructpix2pix"), 64, "all style", lambda texts: ["style"] * len(texts))
    pair_import.import_pairs(wanted, [root / "train.parquet"], root / "data/theirs", root)
    return list(read_folder(root / "data/theirs", Pair))


@pytest.fixture
def painted(tmp_path: Path) -> list[Pair]:
    """Exact pairs, with a score."""
    exact_dataset.write_dataset(tmp_path, {"local": 6})
    pairs = [dataclasses.replace(one, scores={"dino": 0.7}) for one in read_folder(tmp_path / "data/pairs", Pair)]
    scratch = scratch_folder(tmp_path, "pairs", "scored")
    write_shard(scratch / "shard-00000.parquet", pairs, Pair)
    publish(scratch, tmp_path / "data/pairs", "pairs", {}, {})
    return pairs


def judge(root: Path, mix: dict[str, Any]) -> None:
    knobs = {"gates": {"default": {"dino": {"min": 0.5}}}, "mix": mix, "rank_by": "dino", "keep": 1, "sheet_pairs": 1}
    dataset.run(dataset.DatasetParams.model_validate(knobs | {"licences": {}, "routing": None}), root)


def test_imported_pairs_are_judged_and_trained_on(painted: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emuedit.tracking.stats._Mirror._try", lambda self: None)
    torch.set_num_threads(1)
    theirs = bring(tmp_path, 3)
    judge(tmp_path, {"data/theirs": {"default": {}}})
    verdicts = list(read_folder(tmp_path / dataset.OUT, Verdict, verify=True))
    assert [(one.pair_id, one.kept) for one in verdicts] == [(one.id, True) for one in painted + theirs]
    written = (tmp_path / dataset.OUT / "card.md").read_text()
    assert "| `data/theirs` | `timbrooks/instructpix2pix-clip-filtered` | not stated | 3 | 3 | default: none |" in written
    base = config.load(train.TrainParams, "train", ROOT / "params.yaml").model_dump()
    base["world"]["base_model"] = str(ROOT / "toyworld/weights/base_model")
    params = train.TrainParams.model_validate(base | SMALL)
    summary = train.run(params, tmp_path)
    assert summary.counts["pairs"] == len(painted) + len(theirs)
    assert set(summary.params["data"]["mixed"]) == {"data/theirs"}
    (latents,) = (tmp_path / "scratch/latents").iterdir()
    rows = Cache(latents, 0.0).train
    assert rows.pair_ids.tolist() == [one.id for one in painted + theirs]
    assert rows.task.tolist() == [0] * 6 + [6] * 3
