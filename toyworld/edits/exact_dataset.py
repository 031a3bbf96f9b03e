"""Exact pairs: what the data stations would leave if base_model, masks and gates were perfect. The upper bound of an editor.

    python -m toyworld.edits.exact_dataset --root DIR -n 400 [--tasks local remove]

writes `DIR/data/pairs` and `DIR/data/dataset`, published like the stations' own, n pairs a task, all of them kept.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from emuedit.data.png import encode_png
from emuedit.data.publish import fingerprint, publish, scratch_folder
from emuedit.data.records import Caption, Instruction, Pair, Verdict
from emuedit.data.shards import write_shard
from toyworld.edits.exact_edits import Edits, edits, names

ROWS_PER_SHARD = 500
REVISION = "exact"
"""Stands where the base_model's revision would."""


def pairs(some: Edits) -> list[Pair]:
    """Edits with known results as the records that training reads. Their first parent is an instruction, then a caption."""
    made = []
    for n, text in enumerate(some.instructions):
        caption = Caption(some.input_captions[n], "exact", int(some.numbers[n]))
        said = Instruction(
            caption.id, some.task, text, caption.text, some.output_captions[n], some.objects[n] or None, some.objects[n] or None,
            reverse=False, seed=0, llm=REVISION, answer="",
        )  # fmt: skip
        made.append(
            Pair(
                instruction_id=said.id,
                parent_ids=(said.id, caption.id),
                task=some.task,
                instruction=text,
                source_caption=said.source_caption,
                target_caption=said.target_caption,
                seed=int(some.numbers[n]),
                model_revision=REVISION,
                recipe={"kind": REVISION},
                source=encode_png(some.before[n]),
                target=encode_png(some.exact[n]),
                mask=None,
                scores={},
            )
        )
    return made


def write(root: Path, counts: Mapping[str, int]) -> None:
    """Publish so many pairs of each task below `root`, as the stations pairs and dataset would."""
    knobs = {"pairs": dict(counts)}
    mark = fingerprint(knobs, __file__)
    folders = {station: scratch_folder(root, station, mark) for station in ("pairs", "dataset")}
    number = 0
    for name, n in tqdm(counts.items(), desc="exact pairs", unit="task"):
        for start in range(0, n, ROWS_PER_SHARD):
            some = pairs(edits(name, "train", start, min(ROWS_PER_SHARD, n - start)))
            kept = [Verdict(one.id, kept=True, task=one.task, reasons=(), gates={}, scores={}) for one in some]
            write_shard(folders["pairs"] / f"shard-{number:05d}.parquet", some, Pair)
            write_shard(folders["dataset"] / f"shard-{number:05d}.parquet", kept, Verdict)
            number += 1
    for station, folder in folders.items():
        publish(folder, root / "data" / station, station, knobs, {"kept": sum(counts.values())})


def main() -> None:
    """Write the pairs and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that gets data/pairs and data/dataset")
    parser.add_argument("-n", type=int, default=400, help="pairs a task")
    parser.add_argument("--tasks", nargs="*", default=(), help="tasks, trained ones; all sixteen if none is named")
    args = parser.parse_args()
    write(args.root, dict.fromkeys(args.tasks or names(), args.n))
    print(args.root / "data")


if __name__ == "__main__":
    main()
