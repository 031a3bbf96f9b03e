"""Do the filters of the stage `dataset` keep the correct pairs? Measured on generated pairs, against the oracle.

`uv run python bench/filters.py [--quick]` writes `bench/results/filters.json`; its last line is the same JSON. It needs
`data/pairs`.

`kept`, `precision` and `recall` are for all filters together, over all pairs. `best_candidate` is measured after selecting the
best candidate of each instruction; its recall counts instructions that have a correct candidate. For each task there are also
results of each filter alone, and counts of the oracle's faults, in all pairs and in those that pass. `oracle_accepts` tests the
oracle: its acceptance rate for exact pairs that went through the base model's autoencoder, and for the same pairs with a wrong
target.

`--search 0.95` instead searches thresholds that reach this precision on one half of the captions, prints the results
on both halves and writes nothing. If the recall would fall below `--min-recall`, the precision is lowered in steps
of 0.01.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from harness import command, filter_search
from harness.filter_search import Edge, SelectionQuality, selection_quality
from scipy.ndimage import maximum_filter

from emuedit import config
from emuedit.data.png import encode_png
from emuedit.data.publish import read_folder
from emuedit.data.records import Pair
from emuedit.data.selection import NOT_BEST
from emuedit.data.shards import SCORE_PREFIX
from emuedit.models import text_to_image
from emuedit.models.image_tensors import from_uint8, to_uint8
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import rng
from emuedit.stages import dataset
from emuedit.stages.dataset import DatasetParams
from toyworld.edits import exact_dataset
from toyworld.edits.exact_edits import build_edits
from toyworld.oracle import pair_judge
from toyworld.oracle.pair_judge import PairVerdict

QUICK_INSTRUCTIONS = 64
ORACLE_EDITS, QUICK_ORACLE_EDITS = 40, 2
"""Exact pairs per task for the test of the oracle."""
MASK_SIZE_PX = 5
"""The mask of an exact pair: its changed pixels, dilated by a square of this size. Backgrounds are not dilated."""
BOTH: tuple[Edge, ...] = ("min", "max")
EDGES: dict[str, tuple[Edge, ...]] = {
    "clip_source": ("min",),
    "clip_target": ("min",),
    "clip_direction": ("min",),
    "clip_image": BOTH,  # something must change, but not everything
    "dino": BOTH,
    "depth_l1": BOTH,
    "l1_inside": ("min",),
    "l1_outside": ("max",),
    "mask_area": BOTH,
    "target_object_after": ("min",),
    "source_object_after": ("max",),
    "source_object_before": ("min",),
    "object_left_in_mask": ("max",),
}
"""Meaningful bounds of each score; only these are searched."""
MARKED_EDGES = EDGES | {"source_object_after": ("min",)}
"""The same for detect and segment, whose target still shows the object."""


def score_table(pairs: Sequence[Pair]) -> pa.Table:
    """The columns that `dataset.filter_pairs` reads: id, instruction_id, task and score_*."""
    columns: dict[str, Any] = {
        "id": [pair.id for pair in pairs],
        "instruction_id": [pair.instruction_id for pair in pairs],
        "task": pa.array([pair.task for pair in pairs]),
    }
    for name in pairs[0].scores:
        columns[SCORE_PREFIX + name] = pa.array([pair.scores[name] for pair in pairs], pa.float64())
    return pa.table(columns)


def measure_filters(pairs: Sequence[Pair], verdicts: Sequence[PairVerdict], params: DatasetParams) -> dict[str, Any]:
    """Compare the filters with the oracle's verdicts: over all tasks, per task, and each filter alone."""
    result = dataset.filter_pairs(score_table(pairs), params)
    right = np.array([verdict.right for verdict in verdicts])
    passed = ~np.delete(result.failed, result.reasons.index(NOT_BEST), 0).any(0)
    tasks = np.array([pair.task for pair in pairs])
    instructions = np.array([pair.instruction_id for pair in pairs])
    figures: dict[str, Any] = rounded(selection_quality(passed, right))
    figures |= {"best_candidate": best_candidate_quality(result.kept, right, instructions), "tasks": {}}
    for task in sorted(set(tasks.tolist())):
        rows = np.flatnonzero(tasks == task)
        used = {f"{score}_{edge}" for score, bounds in params.filters_for(task).items() for edge in (*bounds, "missing")}
        failed_by = {reason: result.failed[r, rows] for r, reason in enumerate(result.reasons) if reason in used}
        figures["tasks"][task] = {
            "n_pairs": len(rows),
            "right": round(float(right[rows].mean()), 3),
            **rounded(selection_quality(passed[rows], right[rows])),
            "best_candidate": best_candidate_quality(result.kept[rows], right[rows], instructions[rows]),
            "filters": {
                reason: rounded(selection_quality(~failed, right[rows]))
                for reason, failed in failed_by.items()
                if failed.any() or not reason.endswith("_missing")
            },
            "faults": count_faults([verdicts[row] for row in rows]),
            "faults_kept": count_faults([verdicts[row] for row in rows if passed[row]]),
        }
    return figures


def best_candidate_quality(kept: np.ndarray, right: np.ndarray, instructions: np.ndarray) -> dict[str, float | None]:
    """Precision of the kept pairs, and the share of instructions with a correct candidate for which one is kept."""
    possible, reached = set(instructions[right].tolist()), set(instructions[kept & right].tolist())
    precision = selection_quality(kept, right).precision
    return {
        "precision": None if precision is None else round(precision, 3),
        "recall": round(len(reached) / len(possible), 3) if possible else None,
    }


def count_faults(verdicts: Sequence[PairVerdict]) -> dict[str, int]:
    """How many pairs have each fault, the most frequent fault first."""
    return dict(Counter(fault for verdict in verdicts for fault in verdict.faults).most_common())


def rounded(quality: SelectionQuality) -> dict[str, float | None]:
    """The quality of a selection with three digits."""
    return {name: None if value is None else round(value, 3) for name, value in asdict(quality).items()}


def oracle_acceptance(tasks: Sequence[str], n: int, workspace: Path) -> dict[str, dict[str, float]]:
    """The share of n exact pairs per task that the oracle accepts, and of the same pairs with a wrong target."""
    world = config.load(config.World, "world", workspace / "params.yaml")
    base_model = text_to_image.load(config.resolve_path(world.base_model, workspace))
    accepted: dict[str, dict[str, float]] = {"exact": {}, "wrong_target": {}}
    for task in tasks:
        for name, pairs in zip(accepted, exact_and_wrong_pairs(task, n, base_model), strict=True):
            accepted[name][task] = round(float(np.mean([verdict.right for verdict in pair_judge.judge(pairs)])), 3)
    return accepted


def exact_and_wrong_pairs(task: str, n: int, base_model: TextToImageModel) -> tuple[list[Pair], list[Pair]]:
    """n edits with reference results in the form of generated pairs, and the same with the result of another edit.

    Images go through the autoencoder, except annotated ones.
    """
    edits = build_edits(task, "held_out", 0, n)

    def reconstruct(picture: np.ndarray) -> np.ndarray:
        return to_uint8(base_model.decode(base_model.encode(from_uint8(picture))))[0]

    exact_pairs: list[Pair] = []
    wrong_pairs: list[Pair] = []
    for row, pair in enumerate(exact_dataset.build_pairs(edits)):
        before, exact, wrong = edits.before[row], edits.exact[row], edits.alternatives[row, 0]
        source_is_annotated, target_is_annotated = pair_judge.annotated_sides(pair)
        source = before if source_is_annotated else reconstruct(before)
        mask_png = None
        if not (source_is_annotated or target_is_annotated or task in ("global", "style")):
            changed = np.abs(before.astype(int) - exact).max(-1) > 0
            mask = maximum_filter(changed, MASK_SIZE_PX if task != "background" else 1)
            mask_png = encode_png(mask.astype(np.uint8) * 255)
        for pairs, target in ((exact_pairs, exact), (wrong_pairs, wrong)):
            if not target_is_annotated:
                picture = reconstruct(target)
            elif task in ("detect", "segment"):  # the annotator draws on the generated source
                picture = np.where((target != before).any(-1, keepdims=True), target, source)
            else:
                picture = target
            pairs.append(replace(pair, source=encode_png(source), target=encode_png(picture), mask=mask_png))
    return exact_pairs, wrong_pairs


def sample_instructions(pairs: Sequence[Pair], n: int) -> list[Pair]:
    """All candidates of n instructions."""
    names = sorted({pair.instruction_id for pair in pairs})
    chosen = set(rng("bench", "gates").permutation(names)[:n].tolist())
    return [pair for pair in pairs if pair.instruction_id in chosen]


def search_thresholds(
    pairs: Sequence[Pair], verdicts: Sequence[PairVerdict], precision: float, min_recall: float
) -> dict[str, Any]:
    """Per task: bounds chosen on one half of the captions, and their results on both halves."""
    figures: dict[str, Any] = {}
    for task in sorted({pair.task for pair in pairs}):
        rows = [row for row, pair in enumerate(pairs) if pair.task == task]
        right = np.array([verdicts[row].right for row in rows])
        scores = {
            name: np.array([np.nan if (value := pairs[row].scores[name]) is None else value for row in rows], float)
            for name in pairs[0].scores
        }
        edges = MARKED_EDGES if task in ("detect", "segment") else EDGES
        calibration = filter_search.calibration_half(np.array([pairs[row].parent_ids[-1] for row in rows]))
        calibration_scores = {name: value[calibration] for name, value in scores.items()}
        bounds = filter_search.search_with_recall(calibration_scores, right[calibration], edges, precision, min_recall)
        passed = np.all([bound.passes(scores) for bound in bounds] + [np.ones(len(rows), bool)], 0)
        figures[task] = {
            "filters": [asdict(bound) for bound in bounds],
            "right": round(float(right.mean()), 3),
            "calibration_half": rounded(selection_quality(passed[calibration], right[calibration])),
            "other_half": rounded(selection_quality(passed[~calibration], right[~calibration])),
        }
    return figures


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = command.argument_parser(__doc__, quick=f"a sample of {QUICK_INSTRUCTIONS} instructions")
    command.add_workspace(parser)
    parser.add_argument("--search", type=float, metavar="PRECISION", help="search thresholds for this precision instead")
    parser.add_argument("--min-recall", type=float, default=0.8, help="with --search: the recall to keep; default: 0.8")
    return parser.parse_args()


def main() -> None:
    """Measure, or search thresholds; print."""
    args = parse_arguments()
    command.require_outputs(args.workspace, dataset.IN)
    torch.set_num_threads(1)  # the oracle does not use torch; idle threads would slow it down
    pairs = list(read_folder(args.workspace / dataset.IN, Pair))
    pairs = sample_instructions(pairs, QUICK_INSTRUCTIONS) if args.quick else pairs
    verdicts = pair_judge.judge(pairs)
    if args.search is not None:
        figures = search_thresholds(pairs, verdicts, args.search, args.min_recall)
        for task, row in figures.items():
            print(task, json.dumps(row))
        print(json.dumps(figures))
        return
    params = config.load(DatasetParams, "dataset", args.workspace / "params.yaml")
    params = params.model_copy(update={"reassignment": None})  # it reads instructions; the oracle reads images
    figures = measure_filters(pairs, verdicts, params)
    tasks = sorted({pair.task for pair in pairs})
    n_edits = QUICK_ORACLE_EDITS if args.quick else ORACLE_EDITS
    figures |= {"oracle_accepts": oracle_acceptance(tasks, n_edits, args.workspace), "n_pairs": len(pairs)}
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
