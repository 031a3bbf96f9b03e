"""Do the gates of `dataset` keep the right pairs? Measured on painted pairs against the oracle that reads them back.

`uv run python bench/gates.py [--quick]` writes `bench/results/gates.json`; its last line is the same JSON. It wants data/pairs.
`precision` and `recall` are those of all gates together, over all pairs; `best` those after the best candidate of each
instruction was chosen, recall in instructions that have a right candidate. `truth` says what the oracle itself makes of
exact pairs after the base_model's autoencoder, and of the same pairs with a wrong target.
`--propose 0.95` instead chooses thresholds on one half of the instructions for that precision and judges them on the other;
where it would cost more recall than `--recall` leaves, the precision comes down.
"""

import argparse
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.ndimage import maximum_filter

from emuedit import config
from emuedit.data import filter_search as filter_search
from emuedit.data.filter_search import figures
from emuedit.data.png import encode_png
from emuedit.data.publish import read_folder
from emuedit.data.records import Pair
from emuedit.models import image_tensors, text_to_image, vae_latents
from emuedit.runtime import rng
from emuedit.stages import dataset
from toyworld.edits import exact_dataset
from toyworld.edits.exact_edits import build_edits
from toyworld.oracle import pair_judge
from toyworld.oracle.pair_judge import PairVerdict

ROOT = Path(__file__).parent.parent
RIM_PX = 5
BOTH: tuple[filter_search.Edge, ...] = ("min", "max")
EDGES: dict[str, tuple[filter_search.Edge, ...]] = {
    "clip_source": ("min",),
    "clip_target": ("min",),
    "clip_direction": ("min",),
    "clip_image": BOTH,  # something must change, and not everything
    "dino": BOTH,
    "depth_l1": BOTH,
    "l1_inside": ("min",),
    "l1_outside": ("max",),
    "mask_area": BOTH,
    "present_target": ("min",),
    "present_source": ("max",),
    "found_source": ("min",),
    "left_inside": ("max",),
}
"""Bounds that make sense of each score: only these are proposed."""
WRONG = "wrong_target"


def table(pairs: Sequence[Pair]) -> pa.Table:
    """What `dataset.judge` asks about: ids, tasks and scores."""
    columns: dict[str, Any] = {"id": [p.id for p in pairs], "instruction_id": [p.instruction_id for p in pairs]}
    columns |= {"task": pa.array([p.task for p in pairs])}
    for name in pairs[0].scores:
        columns[f"score_{name}"] = pa.array([p.scores[name] for p in pairs], pa.float64())
    return pa.table(columns)


def rounded(one: filter_search.SelectionQuality) -> dict[str, float | None]:
    """SelectionQuality as they are told."""
    return {name: None if value is None else round(value, 3) for name, value in asdict(one).items()}


def measured(pairs: Sequence[Pair], truths: Sequence[PairVerdict], params: dataset.DatasetParams) -> dict[str, Any]:
    """The gates against the truth: of all tasks, of each task, and of each gate alone."""
    judged = dataset.judge(table(pairs), params)
    right = np.array([truth.right for truth in truths])
    not_best = judged.reasons.index(dataset.NOT_BEST)
    passed = ~np.delete(judged.failed, not_best, 0).any(0)
    tasks = np.array([p.task for p in pairs])
    instructions = np.array([p.instruction_id for p in pairs])
    told: dict[str, Any] = rounded(figures(passed, right)) | {"best": best(judged.kept, right, instructions), "tasks": {}}
    for task in sorted(set(tasks.tolist())):
        own = np.flatnonzero(tasks == task)
        faults = Counter(fault for i in own for fault in truths[i].faults)
        told["tasks"][task] = {
            "n_pairs": len(own),
            "right": round(float(right[own].mean()), 3),
            **rounded(figures(passed[own], right[own])),
            "best": best(judged.kept[own], right[own], instructions[own]),
            "gates": {
                reason: rounded(figures(~judged.failed[r, own], right[own]))
                for r, reason in enumerate(judged.reasons)
                if reason.rpartition("_")[2] in (*params.row(task).get(reason.rpartition("_")[0], {}), "missing")
                and (judged.failed[r, own].any() or not reason.endswith("_missing"))
            },
            "faults": dict(faults.most_common()),
            "faults_kept": dict(Counter(fault for i in own if passed[i] for fault in truths[i].faults).most_common()),
        }  # fmt: skip
    return told


def best(kept: np.ndarray, right: np.ndarray, instructions: np.ndarray) -> dict[str, float | None]:
    """After the choice of candidates: precision of what is kept, recall in instructions that have a right candidate."""
    possible, reached = set(instructions[right].tolist()), set(instructions[kept & right].tolist())
    precision = figures(kept, right).precision
    return {
        "precision": None if precision is None else round(precision, 3),
        "recall": round(len(reached) / len(possible), 3) if possible else None,
    }


def exact_pairs(task: str, n: int, vae: Any, factor: int) -> tuple[list[Pair], list[Pair]]:
    """Edits with known results as painted pairs would show them, and the same with the target of another edit."""
    some = build_edits(task, "held_out", 0, n)

    def painted(pictures: np.ndarray) -> np.ndarray:
        return image_tensors.to_uint8(
            vae_latents.decode(vae, vae_latents.encode(vae, image_tensors.from_uint8(pictures), factor))
        )

    made: tuple[list[Pair], list[Pair]] = ([], [])
    for i, pair in enumerate(exact_dataset.build_pairs(some)):
        before, targets = some.before[i], (some.exact[i], some.alternatives[i, 0])
        changed = np.abs(before.astype(int) - some.exact[i]).max(-1) > 0
        drawn = pair_judge.annotated_sides(pair)
        source = before if drawn[0] else painted(before[None])[0]
        mask = maximum_filter(changed, RIM_PX if task != "background" else 1)
        for pairs, target in zip(made, targets, strict=True):
            if not drawn[1]:
                shown = painted(target[None])[0]
            elif task in ("detect", "segment"):
                shown = np.where((target != before).any(-1, keepdims=True), target, source)
            else:
                shown = target
            soft = None if True in drawn or task in ("global", "style") else encode_png(mask.astype(np.uint8) * 255)
            pairs.append(replace(pair, source=encode_png(source), target=encode_png(shown), mask=soft))
    return made


def truth_itself(tasks: Sequence[str], n: int) -> dict[str, dict[str, float]]:
    """How often the oracle accepts n exact pairs of each task, and n with a wrong target."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    made_by = text_to_image.load(str(ROOT / config.load(config.World, "world", ROOT / "params.yaml").base_model))
    accepted: dict[str, dict[str, float]] = {"exact": {}, WRONG: {}}
    for task in tasks:
        for name, pairs in zip(accepted, exact_pairs(task, n, made_by.vae, made_by.factor), strict=True):
            accepted[name][task] = round(float(np.mean([one.right for one in pair_judge.judge(pairs)])), 3)
    return accepted


def sample(pairs: Sequence[Pair], n: int) -> list[Pair]:
    """The candidates of n instructions."""
    names = sorted({p.instruction_id for p in pairs})
    chosen = set(rng("bench", "gates").permutation(names)[:n].tolist())
    return [p for p in pairs if p.instruction_id in chosen]


def proposed(pairs: Sequence[Pair], truths: Sequence[PairVerdict], wanted: float, least_recall: float) -> dict[str, Any]:
    """Per task: gates chosen on one half, and what they reach on both."""
    told: dict[str, Any] = {}
    for task in sorted({p.task for p in pairs}):
        own = [i for i, p in enumerate(pairs) if p.task == task]
        right = np.array([truths[i].right for i in own])
        scores = {
            name: np.array([np.nan if pairs[i].scores[name] is None else pairs[i].scores[name] for i in own], float)
            for name in pairs[0].scores
        }
        edges = EDGES if task not in ("detect", "segment") else EDGES | {"present_source": ("min",)}
        first = filter_search.calibration_half(np.array([pairs[i].parent_ids[-1] for i in own]))
        some = {name: value[first] for name, value in scores.items()}
        gates = filter_search.search_with_recall(some, right[first], edges, wanted, least_recall)
        passed = np.all([gate.passes(scores) for gate in gates] + [np.ones(len(own), bool)], 0)
        told[task] = {"gates": [asdict(gate) for gate in gates], "right": round(float(right.mean()), 3)}
        told[task] |= {
            name: rounded(figures(passed[half], right[half])) for name, half in (("chosen_on", first), ("held", ~first))
        }
    return told


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a sample of the instructions")
    parser.add_argument("--propose", type=float, metavar="PRECISION", help="propose thresholds; nothing is written")
    parser.add_argument("--recall", type=float, default=0.8, help="with --propose: lower the precision until this is reached")
    args = parser.parse_args()
    pairs = list(read_folder(ROOT / dataset.IN, Pair))
    pairs = sample(pairs, 250) if args.quick else pairs
    truths = pair_judge.judge(pairs)
    if args.propose:
        told = proposed(pairs, truths, args.propose, args.recall)
        for task, one in told.items():
            print(task, json.dumps(one))
    else:
        params = config.load(dataset.DatasetParams, "dataset", ROOT / "params.yaml")
        told = measured(pairs, truths, params.model_copy(update={"routing": None}))  # the router judges words, not pictures
        told |= {"truth": truth_itself(sorted({p.task for p in pairs}), 6 if args.quick else 40), "n_pairs": len(pairs)}
        (ROOT / "bench/results/gates.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
