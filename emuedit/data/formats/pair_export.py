"""The kept pairs for trainers elsewhere: Parquet in the columns of InstructPix2Pix and ours, with a dataset card.

In: `data/pairs` (Pair), `data/dataset` (Verdict, `data_card.md`, sheets). Out: a folder that `datasets.load_dataset` reads as it is:
`train-*.parquet`, whose picture columns are marked as `Image`, `README.md`, the sheets, `summary.json`.
"""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from emuedit.data import data_card
from emuedit.data.formats.own_format import FORMAT
from emuedit.data.formats.pair_format import UNUSED, FormatError
from emuedit.data.formats.pair_import import free
from emuedit.data.publish import Summary, fingerprint, publish, read_summary, scratch_folder
from emuedit.data.records import Verdict
from emuedit.data.shards import read_shard

PAIRS, DATASET = "data/pairs", "data/dataset"
README = "README.md"
_ROWS = 100  # of a row group: what a viewer reads to show one page
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COLUMNS = """\
## Columns

```python
import datasets

pairs = datasets.load_dataset("parquet", data_files="train-*.parquet", split="train")
```

`original_prompt`, `original_image`, `edit_prompt`, `edited_prompt` and `edited_image` are those of InstructPix2Pix. `task` is
the kind of edit, `mask` is white where the instruction rules (empty: everywhere), `score_*` are raw scores, `recipe` says how a
pair was made. Pairs with the same second entry of `parent_ids` share a caption and a picture: split by it.
"""


def run(out: Path, root: Path) -> Summary:
    """Write the kept pairs of `root`, a file for each shard that has any, and publish to `out`.

    Raises FormatError when the verdicts are of other pairs or have no card, and for an `out` that holds other things.
    """
    free(out, "export")
    pairs, dataset = read_summary(root / PAIRS), read_summary(root / DATASET)
    if data_card.CARD not in dataset.shards:
        raise FormatError(f"want a data card in {DATASET}, got {len(dataset.shards)} files without one; run `dvc repro dataset`")
    names = sorted(name for name in pairs.shards if Path(name).match("shard-*.parquet"))
    verdicts = {name: read_shard(root / DATASET / name, Verdict) for name in names}
    some = [name for name in names if any(one.kept for one in verdicts[name])]
    knobs = {"pairs": pairs.fingerprint, "dataset": dataset.fingerprint}
    scratch = scratch_folder(root, "export", fingerprint(knobs, *sorted(Path(__file__).parent.glob("*.py"))))
    for number, name in enumerate(tqdm(some, unit="shard", desc="export")):
        path = scratch / f"train-{number:05d}-of-{len(some):05d}.parquet"
        if not path.exists():
            _write(path, _kept(root / PAIRS / name, verdicts[name]))
    for file in (root / DATASET).glob("sheet_*.png"):
        shutil.copy2(file, scratch / file.name)
    n = sum(one.kept for found in verdicts.values() for one in found)
    (scratch / README).write_text(
        _readme(n, dataset, (root / DATASET / data_card.CARD).read_text(encoding="utf-8")), encoding="utf-8"
    )
    return publish(scratch, out, "export", knobs, {"pairs": n})


def _kept(path: Path, verdicts: list[Verdict]) -> pa.Table:
    """The kept rows of a shard of pairs, under their new names; a task is what the verdict says it is."""
    table = pq.ParquetFile(path, page_checksum_verification=True).read()
    if table["id"].to_pylist() != [one.pair_id for one in verdicts]:
        raise FormatError(f"want the verdicts of {path}, got those of other pairs in {DATASET}; run `dvc repro dataset`")
    table = table.set_column(table.schema.get_field_index("task"), "task", pa.array([one.task for one in verdicts], pa.string()))
    table = table.filter(pa.array([one.kept for one in verdicts]))
    columns = {name: table["id" if column.field == UNUSED else column.field] for name, column in FORMAT.columns.items()}
    return pa.table(columns | {name: table[name] for name in table.column_names if name.startswith(str(FORMAT.scores))})


def _write(path: Path, table: pa.Table) -> None:
    pictures = [name for name, column in FORMAT.columns.items() if column.kind == "image"]
    features = {"info": {"features": {name: {"_type": "Image"} for name in pictures}}}
    partial = path.with_name(f".{path.name}.part")
    plain = [name for name in table.column_names if name not in pictures]
    marked = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(marked, partial, compression="zstd", row_group_size=_ROWS, write_statistics=plain)
    partial.replace(path)


def _readme(n: int, dataset: Summary, told: str) -> str:
    """The dataset card: what a hub reads, then our data card."""
    licences = sorted(set(dataset.params["licences"].values()))
    front = {
        "license": licences[0].lower() if len(licences) == 1 else "other" if licences else "unknown",
        "pretty_name": told.splitlines()[0].removeprefix("# Data card: "),
        "task_categories": ["image-to-image"],
        "size_categories": [next((name for most, name in _SIZES if n < most), "n>1M")],
        "tags": ["image-editing", "instruction-based-editing", "synthetic"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train-*.parquet"}]}],
    }
    text = yaml.safe_dump(front, sort_keys=False)
    return f"---\n{text}---\n\n{told.rstrip()}\n\n{_COLUMNS}"
