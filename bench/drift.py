"""Does an image drift over many turns? Twenty turns of edits that cancel out or request no change.

`uv run python bench/drift.py [--quick]` writes `bench/results/drift.json`, `drift.png` (by turn) and `drift_turns.png` (one
image); its last line is the same JSON. It uses the base editor of the toy world, or another with `--editor FOLDER`.

Half of the images: an object gets another colour, its original colour again, and once more its original colour, which changes
nothing. The other half: an object is added and removed again. Each turn edits the result of the previous turn. Systems:

- `ours`: the change-mask head blends the source in, cells without a change keep their pixels, as do pixels that changed
  less than the threshold, measured from the autoencoder's reconstruction;
- `paper`: Emu Edit's thresholding as published (arXiv 2311.10089): measured from the image, without a change mask;
- `none`: pixels are not kept, but the source is blended in;
- `naive`: neither.

`l1` and `dino` compare the image with the first one, outside the edited object (for `dino` the object's region is copied from the
first image). `success` is by the toy world's judge, for the image that the turn requests.
`drift_ratio_10_turns` is the L1 of `ours` divided by that of `none` after ten turns, `drift_ratio_10_turns_median` that of the
median images, which says more of how well pixels are kept: a few images in which the editor edits another object make most
of the mean. `l1_median` is the L1 of the median image. The cycles of both halves
repeat every six turns, so turns 1 to 6 and turns 7 to 12 have the same edits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import command
from scipy.ndimage import maximum_filter

from emuedit import config
from emuedit.data import contact_sheet
from emuedit.editor import sampling
from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.models import dino, image_tensors
from emuedit.progress import Progress
from emuedit.runtime import Runtime
from toyworld.edits import exact_judge, phrasings, task_judge
from toyworld.edits.exact_edits import build_edits
from toyworld.edits.scene_changes import CHANGES
from toyworld.edits.wrong_scenes import render_wrong
from toyworld.scenes import render
from toyworld.scenes.caption_grammar import slot_noun
from toyworld.scenes.palette import COLOURS
from toyworld.scenes.scene import scene_numbers

TURNS, QUICK_TURNS = 20, 3
PICTURES, QUICK_PICTURES = 12, 2
"""Images per half."""
RIM_PX = 7
"""The edited object's region is dilated by a square of this size, since autoencoders blur a thin rim."""
SYSTEMS: dict[str, dict[str, float]] = {
    "ours": {},
    "paper": {"against_reconstruction": 0, "preserve": 0.0, "composite": 0},
    "none": {"change_threshold": 0.0, "composite": 0},
    "naive": {"change_threshold": 0.0, "preserve": 0.0, "composite": 0},
}
LABELS = {"ours": "ours", "paper": "Emu Edit's threshold", "none": "blending only", "naive": "no preservation"}
"""System -> its name in the images."""


@dataclass(frozen=True)
class TurnScript:
    """N images with two states each, between which the turns alternate."""

    task: tuple[str, ...]  # of the turns of a cycle
    state: tuple[int, ...]  # after each turn of a cycle: 1 is the edited one
    instructions: tuple[list[str], ...]  # N of each turn of a cycle
    states: tuple[np.ndarray, np.ndarray]  # uint8 [N, H, W, 3]
    others: tuple[np.ndarray, np.ndarray]  # wrong results, uint8 [N, K, H, W, 3], for state 0 and state 1
    spoiled: tuple[np.ndarray, np.ndarray]  # results with another change, uint8 [N, M, H, W, 3], for state 0 and state 1

    @property
    def region(self) -> np.ndarray:
        """Where the states differ, with a rim; bool [N, H, W]."""
        return maximum_filter(exact_judge.edit_region(*self.states), (1, RIM_PX, RIM_PX))

    def judge(self, turn: int, output: np.ndarray) -> np.ndarray:
        """Whether the outputs of a turn show the requested state, by the judge of the turn's task; bool [N]."""
        cycle = turn % len(self.state)
        state = self.state[cycle]
        before, exact = self.states[1 - state], self.states[state]
        return task_judge.judge(self.task[cycle], output, before, exact, self.others[state], self.spoiled[state]).success


def recolour(n: int) -> TurnScript:
    """An object gets another colour, its original colour, and its original colour once more."""
    change = CHANGES["local"](scene_numbers("held_out", 0, 8 * n))
    rows = np.arange(len(change.slots))
    chosen = rows[change.source.kind[rows, change.slots] == change.target.kind[rows, change.slots]][:n]  # others change shape
    source, target, slots = change.source[chosen], change.target[chosen], change.slots[chosen]
    at = (np.arange(n), slots)
    template = phrasings.LOCAL_COLOUR[0]

    def texts(scenes: Any) -> list[str]:
        nouns = [slot_noun(source, row, slot) for row, slot in enumerate(slots)]
        colours = [COLOURS[colour] for colour in scenes.colour[at]]
        return [template.format(the=f"the {noun}", colour=colour) for noun, colour in zip(nouns, colours, strict=True)]

    pictures = render.images(source), render.images(target)
    others, spoiled = [], []
    for scenes, exact in zip((source, target), pictures, strict=True):
        spoiled.append(np.stack(list(render_wrong(scenes, exact)), 1))
        excluded = np.stack([source.colour[at], target.colour[at]], 1)
        free = np.array([[c for c in range(len(COLOURS)) if c not in row][:4] for row in excluded])  # [N, 4]
        others.append(np.stack([render.images(scenes.replace_fields(*at, colour=free[:, k])) for k in range(4)], 1))
    there, back = texts(target), texts(source)
    return TurnScript(("local",) * 3, (1, 0, 0), (there, back, back), pictures, (others[0], others[1]), (spoiled[0], spoiled[1]))


def add_and_remove(n: int) -> TurnScript:
    """An object is added, and removed again."""
    change = CHANGES["add"](scene_numbers("held_out", 500, n))
    added, removed = (build_edits(task, "held_out", 500, n) for task in ("add", "remove"))
    there = [phrasings.ADD[0].format(**values) for values in change.values]
    nouns = [slot_noun(change.target, row, slot) for row, slot in enumerate(change.slots)]
    back = [phrasings.REMOVE[0].format(the=f"the {noun}") for noun in nouns]
    others = removed.alternatives, added.alternatives
    spoiled = removed.spoiled, added.spoiled
    return TurnScript(("add", "remove"), (1, 0), (there, back), (added.before, added.exact), others, spoiled)


def run(sampler: EditSampler, script: TurnScript, settings: EditSettings, turns: int, progress: Progress) -> list[np.ndarray]:
    """The images after every turn, each uint8 [N, H, W, 3]; each turn has different noise."""
    pictures = [script.states[0]]
    n = len(pictures[0])
    for turn in range(turns):
        cycle = turn % len(script.task)
        before = image_tensors.from_uint8(pictures[-1])
        seeds = [1000 * turn + row for row in range(n)]
        after = sampler.sample(before, script.instructions[cycle], [script.task[cycle]] * n, settings, seeds).images
        pictures.append(image_tensors.to_uint8(after))
        progress.advance()
    return pictures[1:]


def measure(script: TurnScript, pictures: list[np.ndarray], scorer: dino.DinoScorer) -> dict[str, list[Any]]:
    """L1 (mean, and of each image) and DINO outside the object, and success, by turn."""
    first, region = script.states[0], script.region[..., None]
    outside = ~np.broadcast_to(region, first.shape)
    reference = scorer.embed_images(image_tensors.from_uint8(first))
    l1, of_images, similarity, success = [], [], [], []
    for turn, output in enumerate(pictures):
        difference = np.abs(output.astype(np.float32) - first.astype(np.float32)) / 255
        l1.append(float(difference[outside].mean()))
        of_images.append(np.mean(difference, axis=(1, 2, 3), where=outside))
        embedded = scorer.embed_images(image_tensors.from_uint8(np.where(region, first, output)))
        similarity.append(float(torch.nn.functional.cosine_similarity(embedded, reference).mean()))
        success.append(float(script.judge(turn, output).mean()))
    return {"l1": l1, "l1_of_images": of_images, "dino": similarity, "success": success}


def mean_of(values: list[float]) -> float | None:
    """The mean of six turns; None if there are fewer."""
    return float(np.mean(values)) if len(values) == 6 else None


def draw_chart(systems: dict[str, dict[str, list[float]]], path: Path) -> None:
    """L1, DINO and success by turn, one line per system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4))
    axes = figure.subplots(1, 3)
    titles = ("L1 outside the object", "DINO similarity outside the object", "edit success")
    for axis, key, title in zip(axes, ("l1", "dino", "success"), titles, strict=True):
        for name, figures in systems.items():
            axis.plot(range(1, len(figures[key]) + 1), figures[key], label=LABELS[name])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("turn")
        axis.set_ylim(bottom=0)
    axes[1].legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def draw_turns(script: TurnScript, pictures: dict[str, list[np.ndarray]], row: int, path: Path) -> None:
    """One image after each of the first ten turns, one row per system."""
    rows = [
        (LABELS[name], np.stack([script.states[0][row], *(turn[row] for turn in turns[:10])])) for name, turns in pictures.items()
    ]
    n_turns = len(rows[0][1]) - 1
    captions = ["before", *(script.instructions[turn % len(script.task)][row] for turn in range(n_turns))]
    contact_sheet.picture_grid(rows, captions, lines=3, title="each turn edits the result of the previous turn").save(path)


def main() -> None:
    """See above."""
    parser = command.argument_parser(__doc__, f"{QUICK_TURNS} turns of {2 * QUICK_PICTURES} images")
    command.add_editor(parser)
    args = parser.parse_args()
    turns = QUICK_TURNS if args.quick else TURNS
    n = QUICK_PICTURES if args.quick else PICTURES
    sampler = sampling.load(args.editor, Runtime.choose("auto", "float32"))
    params = config.read_yaml(command.ROOT / config.PARAMS_FILE)
    settings = EditSettings().with_changes(params["evaluation"]["settings"])
    scorer = dino.load(str(command.ROOT / params["world"]["dino"]))
    scripts = [recolour(n), add_and_remove(n)]
    systems: dict[str, dict[str, list[float]]] = {}
    pictures: dict[str, list[np.ndarray]] = {}
    with Progress("drift", len(SYSTEMS) * len(scripts) * turns, "turn") as progress:
        for name, changes in SYSTEMS.items():
            outputs = [run(sampler, script, settings.with_changes(changes), turns, progress) for script in scripts]
            parts = [measure(script, output, scorer) for script, output in zip(scripts, outputs, strict=True)]
            systems[name] = {
                key: np.mean([part[key] for part in parts], 0).round(4).tolist() for key in ("l1", "dino", "success")
            }
            of_images = np.concatenate([part["l1_of_images"] for part in parts], 1)  # [turns, images]
            systems[name]["l1_median"] = np.median(of_images, 1).round(5).tolist()
            pictures[name] = outputs[0]
    tenth = min(10, turns) - 1
    draw_chart(systems, command.result_path(__file__, args.quick, ".png"))
    kept = scripts[0].judge(0, pictures["ours"][0])
    row = int(np.argmax(kept))  # the first image whose first edit is correct
    draw_turns(scripts[0], pictures, row, command.result_path(__file__, args.quick, "_turns.png"))
    figures = {
        "turns": turns,
        "pictures": 2 * n,
        "drift_ratio_10_turns": systems["ours"]["l1"][tenth] / systems["none"]["l1"][tenth],
        "drift_ratio_10_turns_median": systems["ours"]["l1_median"][tenth] / systems["none"]["l1_median"][tenth],
        "drift_ratio_to_naive": systems["ours"]["l1"][tenth] / systems["naive"]["l1"][tenth],
        "success_turns_1_to_6": {name: mean_of(values["success"][:6]) for name, values in systems.items()},
        "success_turns_7_to_12": {name: mean_of(values["success"][6:12]) for name, values in systems.items()},
        "systems": systems,
    }
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
