"""Export the kept pairs for other trainers: Parquet with the columns of InstructPix2Pix and ours, and a dataset card.

In: `data/pairs` (Pair) and `data/dataset` (Verdict, `card.md`, contact sheets).
Out: a folder that `datasets.load_dataset` reads: `train-*.parquet` with images as `Image` features, `README.md`,
the contact sheets and `summary.json`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from emuedit.data import data_card
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import content_key
from emuedit.data.formats.emuedit_format import FORMAT
from emuedit.data.formats.pair_format import IGNORED, FormatError
from emuedit.data.formats.pair_import import check_output_folder
from emuedit.data.publish import Summary, publish, read_summary, scratch_folder, scratch_name
from emuedit.data.records import Verdict
from emuedit.data.shards import read_shard

PAIRS, DATASET = "data/pairs", "data/dataset"
README = "README.md"
_ROW_GROUP_SIZE = 100  # rows per page in the hub's dataset viewer
_CONTENT_PARTS = ("captions", "llm", "base_model", "annotators")
"""Parts of the world that make the texts and images; the others locate, score and select."""
_HUB_LICENCES = {
    "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cdla-permissive-2.0", "creativeml-openrail-m", "mit", "odbl", "odc-by", "openrail",
    "openrail++", "pddl",
}  # fmt: skip
"""Ids of frequent licences on the hub, https://huggingface.co/docs/hub/repositories-licenses."""
_SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COLUMNS_SECTION = """\
## Columns

```python
import datasets

pairs = datasets.load_dataset("parquet", data_files="train-*.parquet", split="train")
```

`original_prompt`, `original_image`, `edit_prompt`, `edited_prompt` and `edited_image` follow InstructPix2Pix. `task` is
the kind of edit, `mask` is white where the image may change (empty: everywhere), `score_*` are raw scores, and `recipe` has the
settings that generated the pair. Pairs with the same second entry of `parent_ids` share a caption and an image, and so do
pairs with the same `image_hash` in `recipe`, if they have one: split by the hash, or else by the entry.
"""


def export_pairs(out: Path, root: Path) -> Summary:
    """Write the kept pairs of `root`, one file for each shard with kept pairs, and publish them to `out`.

    Raises FormatError if the verdicts belong to other pairs or have no card, and for an `out` with other
    contents.
    """
    check_output_folder(out, "export")
    pairs, dataset = read_summary(root / PAIRS), read_summary(root / DATASET)
    if data_card.CARD not in dataset.shards:
        raise FormatError(f"want a data card in {DATASET}, got {len(dataset.shards)} files without one; run `dvc repro dataset`")
    shards = sorted(name for name in pairs.shards if Path(name).match("shard-*.parquet"))
    n_kept = {shard: sum(verdict.kept for verdict in read_shard(root / DATASET / shard, Verdict)) for shard in shards}
    shards_with_kept = [shard for shard in shards if n_kept[shard]]
    params = {"pairs": pairs.key, "dataset": dataset.key}
    key = content_key(params, *sorted(Path(__file__).parent.glob("*.py")))
    scratch = scratch_folder(root, scratch_name("export", out), key)
    for number, shard in enumerate(tqdm(shards_with_kept, unit="shard", desc="export")):
        path = scratch / f"train-{number:05d}-of-{len(shards_with_kept):05d}.parquet"
        if not path.exists():
            _write_table(path, _read_kept(root / PAIRS / shard, read_shard(root / DATASET / shard, Verdict)))
    for file in (root / DATASET).glob("sheet_*.png"):
        shutil.copy2(file, scratch / file.name)
    n_pairs = sum(n_kept.values())
    card = (root / DATASET / data_card.CARD).read_text(encoding="utf-8")
    (scratch / README).write_text(_render_readme(n_pairs, pairs, dataset, card), encoding="utf-8")
    check_output_folder(out, "export")
    return publish(scratch, out, "export", params, {"pairs": n_pairs})


def _read_kept(path: Path, verdicts: list[Verdict]) -> pa.Table:
    """The kept rows of a shard of pairs, in the columns of our format; the task is taken from the verdict."""
    table = pq.ParquetFile(path, page_checksum_verification=True).read()
    if table["id"].to_pylist() != [verdict.pair_id for verdict in verdicts]:
        raise FormatError(f"want the verdicts of {path}, got those of other pairs in {DATASET}; run `dvc repro dataset`")
    tasks = pa.array([verdict.task for verdict in verdicts], pa.string())
    table = table.set_column(table.schema.get_field_index("task"), "task", tasks)
    table = table.filter(pa.array([verdict.kept for verdict in verdicts]))
    columns = {name: table["id" if column.field == IGNORED else column.field] for name, column in FORMAT.columns.items()}
    return pa.table(columns | {name: table[name] for name in table.column_names if name.startswith(str(FORMAT.scores))})


def _write_table(path: Path, table: pa.Table) -> None:
    picture_columns = [name for name, column in FORMAT.columns.items() if column.kind == "image"]
    features = {"info": {"features": {name: {"_type": "Image"} for name in picture_columns}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    columns_with_statistics = [name for name in table.column_names if name not in picture_columns]
    with replacing(path) as partial:
        pq.write_table(
            table, partial, compression="zstd", row_group_size=_ROW_GROUP_SIZE, write_statistics=columns_with_statistics
        )


def _hub_licence(parts: Mapping[str, Any], licences: Mapping[str, str]) -> str:
    """The hub's id of the licence of all pairs; `other` if there is no such id or not one for all, `unknown` if none is stated.

    parts: those of the world, as the data card lists them. licences: part -> its licence.
    """
    if not licences:
        return "unknown"
    stated = [licences.get(part, "") for part in _CONTENT_PARTS if part in parts] + list(licences.values())
    ids = {licence.strip().lower().replace(" ", "-") for licence in stated}
    return ids.pop() if len(ids) == 1 and ids <= _HUB_LICENCES else "other"


def _render_readme(n_pairs: int, pairs: Summary, dataset: Summary, card: str) -> str:
    """The dataset card: front matter for the hub, our data card, and a description of the columns."""
    front_matter = {
        "license": _hub_licence(pairs.params.get("world", {}), dataset.params["licences"]),
        "pretty_name": card.splitlines()[0].removeprefix("# Data card: "),
        "task_categories": ["image-to-image"],
        "size_categories": [next((category for limit, category in _SIZE_CATEGORIES if n_pairs < limit), "n>1M")],
        "tags": ["image-editing", "instruction-based-editing", "synthetic"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train-*.parquet"}]}],
    }
    return f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---\n\n{card.rstrip()}\n\n{_COLUMNS_SECTION}"
