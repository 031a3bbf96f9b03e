"""Write a training set of exact pairs: the upper bound of an editor, with perfect generation, masks and filters.

    python -m toyworld.edits.exact_dataset --root DIR -n 400 [--tasks local remove]

Writes `DIR/data/pairs` and `DIR/data/dataset` in the format of the stages `pairs` and `dataset`, with n pairs per task.
All pairs are kept.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from emuedit.data.dependencies import content_key
from emuedit.data.png import encode_png
from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Caption, Instruction, Pair, Verdict
from emuedit.data.shards import write_shard
from toyworld.edits import toy_tasks
from toyworld.edits.exact_edits import Edits, build_edits

ROWS_PER_SHARD = 500
REVISION = "exact"
"""Value of `model_revision` in the pairs: no base model generated them."""


def build_pairs(edits: Edits) -> list[Pair]:
    """Convert edits with reference results to `Pair` records for the stage `train`.

    The parents of a pair are its instruction and its caption, in this order.
    """
    pairs = []
    for n, text in enumerate(edits.instructions):
        caption = Caption(edits.input_captions[n], "exact", int(edits.numbers[n]))
        object_name = edits.objects[n] or None
        instruction = Instruction(
            caption_id=caption.id,
            task=edits.task,
            text=text,
            source_caption=caption.text,
            target_caption=edits.output_captions[n],
            source_object=object_name,
            target_object=object_name,
            reverse=False,
            seed=0,
            llm=REVISION,
            answer="",
        )
        pair = Pair(
            instruction_id=instruction.id,
            parent_ids=(instruction.id, caption.id),
            task=edits.task,
            instruction=text,
            source_caption=instruction.source_caption,
            target_caption=instruction.target_caption,
            seed=int(edits.numbers[n]),
            model_revision=REVISION,
            recipe={"kind": REVISION},
            source=encode_png(edits.before[n]),
            target=encode_png(edits.exact[n]),
            mask=None,
            scores={},
        )
        pairs.append(pair)
    return pairs


def write_dataset(root: Path, counts: Mapping[str, int]) -> None:
    """Publish `data/pairs` and `data/dataset` below `root`. `counts` maps each task to its number of pairs."""
    params = {"pairs": dict(counts)}
    params_fingerprint = content_key(params, __file__)
    folders = {stage: scratch_folder(root, stage, params_fingerprint) for stage in ("pairs", "dataset")}
    shard_number = 0
    for task, n_pairs in tqdm(counts.items(), desc="exact pairs", unit="task"):
        for start in range(0, n_pairs, ROWS_PER_SHARD):
            pairs = build_pairs(build_edits(task, "train", start, min(ROWS_PER_SHARD, n_pairs - start)))
            verdicts = [Verdict(pair.id, kept=True, task=pair.task, reasons=(), filters={}, scores={}) for pair in pairs]
            write_shard(folders["pairs"] / f"shard-{shard_number:05d}.parquet", pairs, Pair)
            write_shard(folders["dataset"] / f"shard-{shard_number:05d}.parquet", verdicts, Verdict)
            shard_number += 1
    for stage, folder in folders.items():
        publish(folder, root / "data" / stage, stage, params, {"kept": sum(counts.values())})


def main() -> None:
    """Write the dataset and print its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder in which data/pairs and data/dataset are written")
    parser.add_argument("-n", type=int, default=400, help="pairs per task")
    parser.add_argument("--tasks", nargs="*", default=(), help="names of trained tasks; default: all")
    args = parser.parse_args()
    write_dataset(args.root, dict.fromkeys(args.tasks or toy_tasks.TRAINED, args.n))
    print(args.root / "data")


if __name__ == "__main__":
    main()
