"""CPU seconds per correct pair with soft masks, Prompt-to-Prompt and InstructPix2Pix's recipe.

`uv run python bench/pairs.py [--quick]` writes `bench/results/pairs.json` and the figures `docs/images/pairs_*.png`;
its last line is the same JSON. It needs `data/instructions`.

All methods share base model, steps, number format, batch size, instructions, filters and oracle, in one process with one thread,
and alternate block by block. Their seconds include generation, locating masks if the method needs them, and scoring for the
filters (CLIP for all candidates, the detector for those that pass it). A pair is correct if it passes the filters of
`params.yaml`, is the best of its instruction by CLIP direction, and the oracle confirms the instructed change in both images. The
recipe grid has six recipes per task (two for backgrounds), as one would try without prior knowledge: either all are generated, or
those chosen by a bandit that learns from block to block. Guidance scales of the other methods are given for Stable Diffusion,
where 7.5 is usual, and are scaled to `pairs.guidance_scale`.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import command, pair_figures
from harness.pair_methods import METHODS, InstructPix2PixMethod, SoftMaskMethod
from harness.pair_scoring import CandidateScorer, ScoredCandidate
from harness.pair_setup import GeneratedPair, Setup, Stopwatch
from tqdm import tqdm

from emuedit import config
from emuedit.data.publish import read_folder
from emuedit.data.records import Instruction
from emuedit.runtime import Runtime, seed_for
from emuedit.stages.dataset import DatasetParams
from emuedit.stages.pairs import PairsParams
from emuedit.synthesis.candidate import source_caption
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.shard_maker import IN

TASKS = ("local", "remove", "add", "texture", "background")
BLOCK = 48
"""Instructions per block, after which the next method runs."""
INSTRUCTIONS, QUICK_INSTRUCTIONS = 2 * BLOCK, 2
QUICK_STEPS = 3
"""Denoising steps with `--quick`."""
IMAGES = command.ROOT / "docs" / "images"
INSTRUCT_PIX2PIX = "instruct_pix2pix"
CANDIDATES_AND_KEPT = ((1, 1), (2, 1), (2, 2), (4, 4))
"""(candidates per instruction, kept candidates) for further measurements of InstructPix2Pix's recipe."""
RATIOS = {
    "ratio_vs_instruct_pix2pix": "instruct_pix2pix",  # with its best number of candidates
    "ratio_vs_prompt_to_prompt": "prompt_to_prompt",  # with or without LocalBlend
    "ratio_vs_no_mask": "no_mask",
    "ratio_vs_hard_mask": "hard_mask",
    "ratio_vs_no_sharing": "soft_mask_without_sharing",
}
"""Soft masks compared with the best method with this name prefix, in correct pairs per CPU second."""


def choose_instructions(workspace: Path, n: int) -> list[Instruction]:
    """About n instructions: all of some source captions, so that sources are shared as in the data."""
    groups: dict[str, list[Instruction]] = defaultdict(list)
    for instruction in read_folder(workspace / IN, Instruction):
        if instruction.task in TASKS:
            groups[source_caption(instruction)].append(instruction)
    chosen: list[Instruction] = []
    for caption in sorted(groups, key=lambda caption: seed_for("bench", "pairs", caption)):
        if len(chosen) >= n:
            break
        chosen += sorted(groups[caption], key=lambda instruction: instruction.id)
    return chosen


def measure(
    instructions: Sequence[Instruction], setup: Setup, scorer: CandidateScorer
) -> tuple[dict[str, list[ScoredCandidate]], Stopwatch]:
    """The scored candidates of every method, and their time."""
    stopwatch, candidates = Stopwatch(), defaultdict[str, list[ScoredCandidate]](list)
    names = list(METHODS)
    for number, start in enumerate(tqdm(range(0, len(instructions), BLOCK), desc="pairs", unit="block", disable=None)):
        first = number % len(names)  # rotate the first method
        for name in names[first:] + names[:first]:
            method = METHODS[name]
            pairs = method.generate(name, instructions[start : start + BLOCK], setup, stopwatch)
            rounds = split_rounds(name, pairs)
            scored = [candidate for k, part in rounds for candidate in scorer.score(name, k, part, stopwatch)]
            candidates[name] += scored
            if isinstance(method, SoftMaskMethod):
                method.count_trials((candidate.pair, candidate.passed) for candidate in scored)
    return candidates, stopwatch


def warm_up(instructions: Sequence[Instruction], setup: Setup, scorer: CandidateScorer) -> None:
    """Run every method once, to exclude model loading and cache filling from the measurement."""
    first = [instruction for instruction in instructions if instruction.task == "local"][:1] or instructions[:1]
    for name, method in METHODS.items():
        scorer.score(name, 0, method.generate(name, first, setup, Stopwatch()), Stopwatch())


def split_rounds(name: str, pairs: Sequence[GeneratedPair]) -> list[tuple[int, Sequence[GeneratedPair]]]:
    """Candidates that are scored together: per round if the method generates in rounds, else all."""
    method = METHODS[name]
    if not isinstance(method, InstructPix2PixMethod):
        return [(0, pairs)]
    return [(k, [pair for pair in pairs if pair.candidate == k]) for k in range(method.rounds)]


def keep_best(candidates: Iterable[ScoredCandidate], n: int) -> list[ScoredCandidate]:
    """For each instruction, the n passing candidates with the highest CLIP direction."""
    groups: dict[str, list[ScoredCandidate]] = defaultdict(list)
    for candidate in candidates:
        if candidate.passed:
            groups[candidate.pair.instruction.id].append(candidate)
    ranked = [sorted(group, key=lambda candidate: -candidate.direction) for group in groups.values()]
    return [candidate for group in ranked for candidate in group[:n]]


def summarise_method(
    name: str,
    candidates: Sequence[ScoredCandidate],
    instructions: Sequence[Instruction],
    stopwatch: Stopwatch,
    rounds: float = math.inf,
    keep: int = 1,
) -> dict[str, Any]:
    """One row of the table: of the first `rounds` candidates of each instruction, `keep` are kept."""
    counted = [candidate for candidate in candidates if candidate.pair.candidate < rounds]
    best = keep_best(counted, keep)
    parts_s, wall_s = stopwatch.totals(name, rounds)
    cpu_s, right = sum(parts_s.values()), sum(candidate.right for candidate in best)
    row: dict[str, Any] = {
        "cpu_s": round(cpu_s, 2),
        "wall_s": round(wall_s, 2),
        "parts_s": {part: round(seconds, 2) for part, seconds in parts_s.items()},
        "candidates": len(counted),
        "cpu_s_per_candidate": round(cpu_s / max(len(counted), 1), 4),
        "kept": len(best),
        "right": right,
        "yield": round(right / len(instructions), 3),
        "right_share": round(right / max(len(best), 1), 3),
        "right_per_cpu_s": round(right / cpu_s, 4),
        "right_per_wall_s": round(right / wall_s, 4),
        "right_inside_per_cpu_s": round(sum(candidate.right_inside for candidate in best) / cpu_s, 4),
    }
    for task in TASKS:
        best_of_task = [candidate for candidate in best if candidate.pair.instruction.task == task]
        row[task] = {
            "instructions": sum(instruction.task == task for instruction in instructions),
            "kept": len(best_of_task),
            "right": sum(candidate.right for candidate in best_of_task),
        }
    return row


def summarise(
    candidates: Mapping[str, Sequence[ScoredCandidate]], instructions: Sequence[Instruction], stopwatch: Stopwatch
) -> dict[str, Any]:
    """The table of all methods, and ratios of soft masks to the best method of each kind."""
    table = {name: summarise_method(name, scored, instructions, stopwatch) for name, scored in candidates.items()}
    for n, keep in CANDIDATES_AND_KEPT:
        table[f"{INSTRUCT_PIX2PIX}_{n}_candidates_keep_{keep}"] = summarise_method(
            INSTRUCT_PIX2PIX, candidates[INSTRUCT_PIX2PIX], instructions, stopwatch, n, keep
        )
    figures: dict[str, Any] = {}
    for key, prefix in RATIOS.items():
        best_rate = max(row["right_per_cpu_s"] for name, row in table.items() if name.startswith(prefix))
        figures[key] = ratio(table["soft_mask"]["right_per_cpu_s"], best_rate)
    for n in (1, 2):  # the bandit compared with all candidates of the same grid
        for key in ("right_per_cpu_s", "yield"):
            bandit, everything = table[f"recipe_grid_bandit_{n}"][key], table["recipe_grid_all"][key]
            figures[f"bandit_{n}_{key}_vs_all"] = ratio(bandit, everything)
    return figures | {"instructions": len(instructions), "methods": table}


def ratio(numerator: float, denominator: float) -> float | None:
    """The ratio with two digits; None if the denominator is 0."""
    return round(numerator / denominator, 2) if denominator else None


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = command.argument_parser(__doc__, quick="few instructions and steps: a smoke test without meaningful measurements")
    command.add_workspace(parser)
    parser.add_argument("--instructions", type=int, metavar="N", help=f"about N instructions; default: {INSTRUCTIONS}")
    return parser.parse_args()


def main() -> None:
    """Measure, draw, write, print."""
    args = parse_arguments()
    command.require_outputs(args.workspace, IN)
    torch.set_num_threads(1)
    params_file = args.workspace / "params.yaml"
    params = config.load(PairsParams, "pairs", params_file)
    params = params.model_copy(update={"steps": QUICK_STEPS}) if args.quick else params
    models = ModelSet(params.world, args.workspace, Runtime.choose(params.device, params.dtype))
    setup = Setup(models, params)
    scorer = CandidateScorer(setup, config.load(DatasetParams, "dataset", params_file))
    n = args.instructions or (QUICK_INSTRUCTIONS if args.quick else INSTRUCTIONS)
    instructions = choose_instructions(args.workspace, n)
    if not args.quick:
        warm_up(instructions, setup, scorer)
    candidates, stopwatch = measure(instructions, setup, scorer)
    figures = summarise(candidates, instructions, stopwatch)
    images = command.RESULTS if args.quick else IMAGES
    ending = ".quick.png" if args.quick else ".png"
    images.mkdir(parents=True, exist_ok=True)
    pair_figures.draw_sheet(candidates, instructions, TASKS, images / f"pairs_methods{ending}")
    pair_figures.draw_chart(figures["methods"], images / f"pairs_chart{ending}")
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
