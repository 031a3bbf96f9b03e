"""What is soft-mask synthesis worth beside Prompt-to-Prompt and InstructPix2Pix's recipe? Right pairs per second of processor.

`uv run python bench/pairs.py [--quick]` writes `bench/results/pairs.json`; its last line is the same JSON.
It wants `data/instructions`. AllCandidates methods share base_model, steps, number format, batch size, instructions, gates and judge, in one
process of one thread, block by block in turn. Seconds are those of painting, finding masks where the method needs them, and
scoring for the gates (CLIP for all candidates, the detector for those that pass it). A pair counts when it passes the gates of
`params.yaml`, is the best of its instruction by CLIP direction, and the oracle reads both pictures as the instruction wants.
The gate and the oracle's bound outside of the mask use our widest mask on each method's own picture; that costs a rival nothing.
Ours with a menu has six candidates a task (two for backgrounds), as before anything is known: all of them, or those that a
bandit chooses, which learns from block to block.
InstructPix2Pix's guidance is scaled: 7.5 is to Stable Diffusion what the section `pairs` has as guidance for this base_model.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pair_chart
import torch
from pair_methods import METHODS, Clock, InstructPix2Pix, Ours, Painted, phrases, places
from tqdm import tqdm

from emuedit import config
from emuedit.core import similarity
from emuedit.data import contact_sheet
from emuedit.data.filters import ScoreBounds
from emuedit.data.png import encode_png
from emuedit.data.publish import read_folder
from emuedit.data.records import Instruction, Pair
from emuedit.models import image_tensors
from emuedit.runtime import Runtime, seed_for
from emuedit.stages import dataset, pairs
from emuedit.stages.pairs import first_caption
from emuedit.synthesis import masks, pair_scores
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.pair_scores import ScoredEdit
from toyworld.oracle import pair_judge

ROOT = Path(__file__).parent.parent
RESULT, IMAGES = ROOT / "bench/results/pairs.json", ROOT / "docs/images"
TASKS = ("local", "remove", "add", "texture", "background")
BLOCK = 48  # instructions a method paints before it is the next one's turn
Place = torch.Tensor | None


@dataclass(frozen=True)
class FilterResult:
    """A candidate that was scored; `right` and `read_right` (whatever moved outside of the mask) only where it passed."""

    painted: Painted
    direction: float
    passed: bool
    right: bool = False
    read_right: bool = False


def chosen(n: int) -> list[Instruction]:
    """About n instructions: whole groups of one first picture, so that as many share one as in the data."""
    groups: dict[str, list[Instruction]] = defaultdict(list)
    for one in read_folder(ROOT / pairs.IN, Instruction):
        if one.task in TASKS:
            groups[first_caption(one)].append(one)
    some: list[Instruction] = []
    for caption in sorted(groups, key=lambda caption: seed_for("bench", "pairs", caption)):
        if len(some) >= n:
            break
        some += sorted(groups[caption], key=lambda one: one.id)
    return some


class Filters:
    """The gates of params.yaml, as far as every method can answer them."""

    def __init__(self, models: ModelSet, knobs: pairs.PairsParams, rows: dataset.DatasetParams) -> None:
        self.models, self.knobs, self.rows = models, knobs, rows
        self._places: dict[tuple[bytes, tuple[str, ...]], Place] = {}

    def judge(self, name: str, number: int, made: Sequence[Painted], clock: Clock) -> list[FilterResult]:
        """Score candidates of one round and let the gates decide; the oracle looks at those that pass. Its time is nobody's."""
        with clock.on(name, number, "gates"):
            direction = self._direction(made)
            bounds = [self.rows.row(one.instruction.task) for one in made]
            passed = [_within(value, row.get("clip_direction", {})) for value, row in zip(direction, bounds, strict=True)]
            for which in ("present_source", "present_target", "found_source"):
                asked = [n for n, row in enumerate(bounds) if passed[n] and which in row]
                for n, value in zip(asked, self._present([made[n] for n in asked], which), strict=True):
                    passed[n] = _within(value, bounds[n][which])
        M = self._masks(made)
        for n, one in enumerate(made):
            passed[n] = passed[n] and _within(_outside(one, M[n]), bounds[n]["l1_outside"])
        asked = [n for n, row in enumerate(bounds) if passed[n] and "left_inside" in row]
        for n, value in zip(asked, self._left([(made[n], M[n]) for n in asked]), strict=True):
            passed[n] = value is not None and _within(value, bounds[n]["left_inside"])
        good = [_pair(one, m) for one, m, yes in zip(made, M, passed, strict=True) if yes]
        truths = iter(pair_judge.judge(good) if good else ())
        judged = []
        for one, value, yes in zip(made, direction, passed, strict=True):
            faults = next(truths).faults if yes else ("not judged",)
            judged.append(FilterResult(one, value, yes, not faults, not {*faults} - {"rest_outside"}))
        return judged

    def _direction(self, made: Sequence[Painted]) -> list[float]:
        clip, size = self.models.judges.clip, self.knobs.rows_per_batch
        shown = {id(picture): picture for one in made for picture in (one.source, one.target)}
        stack = torch.stack(list(shown.values()))
        seen = torch.cat([clip.embed_images(stack[i : i + size]) for i in range(0, len(stack), size)])
        said = sorted({text for one in made for text in (one.instruction.source_caption, one.instruction.target_caption)})
        words = torch.cat([clip.embed_texts(said[i : i + size]) for i in range(0, len(said), size)])
        row, at = {key: n for n, key in enumerate(shown)}, {text: n for n, text in enumerate(said)}
        image = [seen[[row[id(getattr(one, side))] for one in made]] for side in ("source", "target")]
        text = [words[[at[getattr(one.instruction, f"{side}_caption")] for one in made]] for side in ("source", "target")]
        return similarity.directional_similarity(*image, *text).tolist()

    def _present(self, made: Sequence[Painted], which: str) -> list[float]:
        if not made:
            return []
        words = [one.instruction.target_object if which == "present_target" else one.instruction.source_object for one in made]
        shown = [one.source if which == "found_source" else one.target for one in made]
        queries = [(n, phrase) for n, some in enumerate(words) for phrase in masks.split_phrases(some)]
        found = masks.detect_each(self.models.detector, torch.stack(shown), queries, 0.0, 1.0, self.knobs.rows_per_batch)
        value = [1.0] * len(made)
        for (n, _), one in zip(queries, found, strict=True):
            value[n] = min(value[n], float(one.scores[0]) if len(one) else 0.0)
        return value

    def _left(self, made: Sequence[tuple[Painted, Place]]) -> list[float | None]:
        if not made:
            return []
        edits = []
        for n, (one, M) in enumerate(made):
            what, which = one.instruction, 2 * n + (0 if one.instruction.reverse else 1)
            edits.append(ScoredEdit(2 * n, 2 * n + 1, M, what.source_caption, what.target_caption, None, None, which))
        shown = torch.stack([picture for one, _ in made for picture in (one.source, one.target)])
        return pair_scores.left_inside(shown, edits, self.models.detector, self.knobs.rows_per_batch)

    def _masks(self, made: Sequence[Painted]) -> list[Place]:
        """Our widest mask [1, H, W] on the picture with the object; None where it is not found."""
        shown = [one.target if one.instruction.reverse else one.source for one in made]
        keys = [(picture.numpy().tobytes(), phrases(one.instruction)) for picture, one in zip(shown, made, strict=True)]
        new = [n for n, key in enumerate(keys) if key not in self._places]
        if new:
            stack = torch.stack([shown[n] for n in new])
            asked = [(row, keys[n][1]) for row, n in enumerate(new)]
            self._places |= dict(zip((keys[n] for n in new), places(stack, asked, self.models, self.knobs), strict=True))
        widest = [self.knobs.recipes.of(one.instruction.task)[-1].mask for one in made]
        return [
            None if (found := self._places[key]) is None or mask is None else mask.soft_mask(found)
            for key, mask in zip(keys, widest, strict=True)
        ]


def by_round(name: str, made: Sequence[Painted]) -> list[tuple[int, Sequence[Painted]]]:
    """Candidates that are scored together: those of a round where rounds are drawn one by one, else all."""
    method = METHODS[name]
    if not isinstance(method, InstructPix2Pix):
        return [(0, made)]
    return [(k, [one for one in made if one.candidate == k]) for k in range(method.rounds)]


def _within(value: float | None, bounds: ScoreBounds) -> bool:
    return value is not None and bounds.get("min", -1e9) <= value <= bounds.get("max", 1e9)


def _outside(one: Painted, M: Place) -> float | None:
    if M is None or not (rest := 1 - M[0]).any():
        return None
    return float(((one.source - one.target).abs().mean(0) / 2 * rest).sum() / rest.sum())


def _pair(one: Painted, M: Place) -> Pair:
    """What the oracle wants to see."""
    assert M is not None
    what, (source, target) = one.instruction, image_tensors.to_uint8(torch.stack([one.source, one.target]))
    mask = encode_png((M[0] * 255).round().to(torch.uint8).numpy())
    said = (what.task, what.text, what.source_caption, what.target_caption)
    return Pair(what.id, (what.id,), *said, 0, "", {}, encode_png(source), encode_png(target), mask, {})


def kept(judged: Iterable[FilterResult], keep: int) -> list[FilterResult]:
    """The `keep` best by CLIP direction of those of each instruction that passed."""
    groups: dict[str, list[FilterResult]] = defaultdict(list)
    for one in judged:
        if one.passed:
            groups[one.painted.instruction.id].append(one)
    return [one for group in groups.values() for one in sorted(group, key=lambda one: -one.direction)[:keep]]


def figures(
    name: str, judged: Sequence[FilterResult], some: Sequence[Instruction], clock: Clock, rounds: int, keep: int
) -> dict[str, Any]:
    """One row of the table: of the first `rounds` candidates, keep so many of an instruction."""
    own = [one for one in judged if one.painted.candidate < rounds]
    best = kept(own, keep)
    cpu, wall = ({k: v for k, v in times.items() if k[0] == name and k[1] < rounds} for times in (clock.cpu, clock.wall))
    row: dict[str, Any] = {"cpu_s": round(sum(cpu.values()), 2), "wall_s": round(sum(wall.values()), 2)}
    row["parts_s"] = {part: round(sum(v for k, v in cpu.items() if k[2] == part), 2) for part in dict.fromkeys(k[2] for k in cpu)}
    row |= {"candidates": len(own), "cpu_s_per_candidate": round(sum(cpu.values()) / len(own), 4), "kept": len(best)}
    right = sum(one.right for one in best)
    row |= {"right": right, "yield": round(right / len(some), 3), "right_share": round(right / max(len(best), 1), 3)}
    row["right_per_cpu_s"] = round(right / sum(cpu.values()), 4)
    row["right_per_wall_s"] = round(right / sum(wall.values()), 4)
    row["read_right_per_cpu_s"] = round(sum(one.read_right for one in best) / sum(cpu.values()), 4)
    for task in TASKS:
        n = sum(one.task == task for one in some)
        mine = [one for one in best if one.painted.instruction.task == task]
        row[task] = {"instructions": n, "kept": len(mine), "right": sum(one.right for one in mine)}
    return row


def result(by_method: dict[str, list[FilterResult]], some: Sequence[Instruction], clock: Clock) -> dict[str, Any]:
    """The table, and ours against the best of each kind."""
    table = {name: figures(name, own, some, clock, 99, 1) for name, own in by_method.items()}
    recipe = by_method["instruct_pix2pix"]
    table |= {
        f"instruct_pix2pix_{n}_candidates_keep_{keep}": figures("instruct_pix2pix", recipe, some, clock, n, keep)
        for n, keep in ((1, 1), (2, 1), (2, 2), (4, 4))
    }
    found: dict[str, Any] = {}
    for key, rivals in RATIOS.items():
        theirs = max(table[name]["right_per_cpu_s"] for name in table if name.startswith(rivals))
        found[key] = round(table["ours"]["right_per_cpu_s"] / theirs, 2) if theirs else None
    for n in (1, 2):  # the bandit against every candidate of the same menu
        figure, everything = (table[f"ours_menu_{which}"] for which in (f"bandit_{n}", "all"))
        for unit in ("right_per_cpu_s", "yield"):
            ratio = figure[unit] / everything[unit] if everything[unit] else None
            found[f"bandit_{n}_{unit}_vs_all"] = None if ratio is None else round(ratio, 2)
    return found | {"instructions": len(some), "methods": table}


def eyeball(by_method: dict[str, list[FilterResult]], some: Sequence[Instruction], path: Path) -> None:
    """The first two instructions of every task under all methods: best candidates; a frame in green is right, in red is not."""
    picked = [one for task in TASKS for one in [other for other in some if other.task == task][:2]]
    sheets = []
    for name in ("ours", "instruct_pix2pix", "p2p", "p2p_local_blend"):
        group = {one.id: [j for j in by_method[name] if j.painted.instruction.id == one.id] for one in picked}
        best = [max(group[one.id], key=lambda j: (j.passed, j.direction), default=None) for one in picked]
        rows = []
        for side in ("source", "target"):
            blank = torch.zeros_like(by_method[name][0].painted.source)
            stack = torch.stack([blank if one is None else getattr(one.painted, side) for one in best])
            rows.append((side, image_tensors.to_uint8(stack)))
        marks = [one is not None and one.right for one in best]
        sheets.append(contact_sheet.picture_grid(rows, [one.text for one in picked], 3, name.replace("_", " "), ("target", marks)))
    contact_sheet.tile_sheets(sheets).save(path, optimize=True)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few instructions: proves that it runs, measures little")
    parser.add_argument("--instructions", type=int, help="how many instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    knobs = config.load(pairs.PairsParams, "pairs", ROOT / "params.yaml")
    models = ModelSet(knobs.world, ROOT, Runtime.choose(knobs.device, knobs.dtype), knobs.steps)
    gates = Filters(models, knobs, config.load(dataset.DatasetParams, "dataset", ROOT / "params.yaml"))
    some = chosen(args.instructions or (8 if args.quick else 2 * BLOCK))
    first = [one for one in some if one.task == "local"][:1]
    for name, method in METHODS.items():  # loads, compiles and caches are nobody's
        gates.judge(name, 0, method.generate(name, first, models, knobs, Clock()), Clock())
    clock, by_method = Clock(), defaultdict[str, list[FilterResult]](list)
    names = list(METHODS)
    for number, start in enumerate(tqdm(range(0, len(some), BLOCK), desc="pairs", disable=None)):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            made = METHODS[name].generate(name, some[start : start + BLOCK], models, knobs, clock)
            judged = [one for k, part in by_round(name, made) for one in gates.judge(name, k, part, clock)]
            by_method[name] += judged
            if isinstance(method := METHODS[name], Ours):
                method.learn((one.painted, one.passed) for one in judged)
    found = result(by_method, some, clock) | {"quick": args.quick}
    IMAGES.mkdir(parents=True, exist_ok=True)
    eyeball(by_method, some, IMAGES / "pairs_methods.png")
    pair_chart.draw(found, IMAGES / "pairs_chart.png")
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


RATIOS = {
    "ratio_vs_instruct_pix2pix": ("instruct_pix2pix",),  # at the number of candidates that serves it best
    "ratio_vs_p2p": ("p2p",),  # with or without LocalBlend
    "ratio_vs_no_mask": ("ours_no_mask",),
    "ratio_vs_hard_mask": ("ours_hard_mask",),
    "ratio_vs_no_sharing": ("ours_without_sharing",),
}


if __name__ == "__main__":
    main()
