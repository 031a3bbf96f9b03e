"""How many examples does a new task need? Task inversion compared with alternatives.

`uv run python bench/inversion.py [--quick]` writes `bench/results/inversion.json` and `inversion.png`; its last line is the same
JSON. The editor is the toy world's base editor, which was not trained on the tasks. All methods get the same examples; success is
the toy world's judge on 96 other edits. Finished entries are stored in `scratch/bench/inversion/`, from which the same command
resumes, as long as editor, settings and code are the same.

- `zero_shot`: without training; of the editor's task embeddings and their mean, the one with the lowest loss on the held-out
  examples;
- `embedding`: only the task embedding, as in Emu Edit (arXiv 2311.10089);
- `adapter`: the embedding and an adapter of rank 32 (ours, as in `emuedit learn`);
- `expert`: an adapter of rank 128, four times as large: tests whether the task can be learned at all;
- `textual_inversion`: one new token of the text encoder, with the rates of diffusers' textual_inversion.py.

All methods but the first choose a change threshold on the eight held-out examples, as `emuedit learn` does.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import command, textual_inversion

from emuedit import config
from emuedit.data import contact_sheet
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import content_key
from emuedit.editor import sampling
from emuedit.editor.settings import EditSettings
from emuedit.metrics.systems import make_edits
from emuedit.runtime import Runtime
from emuedit.training.inversion_examples import encode_split
from emuedit.training.learned_threshold import choose_change_threshold
from emuedit.training.loss import LossWeights
from emuedit.training.task_inversion import InversionSettings, invert
from toyworld.edits.exact_edits import build_edits

TASKS = ("contour", "cutout", "superres", "inpaint", "add_detect")
EXAMPLES = (1, 3, 10, 30, 100)
SEEDS = (0, 1, 2)
METHODS: dict[str, dict[str, Any]] = {
    "zero_shot": {"steps": 0},
    "embedding": {},
    "adapter": {"adapter_rank": 32},
    "expert": {"adapter_rank": 128},
    "textual_inversion": {},
}
STEPS, QUICK_STEPS = 300, 2
EDITS, QUICK_EDITS = 96, 4
CODE = (
    "toyworld/edits", "toyworld/scenes", "emuedit/core", "emuedit/models", "emuedit/training", "emuedit/editor",
    "emuedit/metrics", "bench/inversion.py", "bench/harness/textual_inversion.py",
)  # fmt: skip
"""Files and folders of the code whose change makes stored results invalid."""
Entry = tuple[str, str, int, int]
"""(task, method, examples, seed)"""
HELD_OUT = 8
"""Examples for early stopping, in addition to a method's training examples."""


def run(folder: Path, task: str, method: str, n: int, seed: int, quick: bool) -> tuple[dict[str, Any], np.ndarray]:
    """Learn a task from n examples by a method: (results, outputs); outputs are uint8 [N, H, W, 3]."""
    sampler = sampling.load(folder, Runtime.choose("auto", "float32"))
    params = config.read_yaml(command.ROOT / config.PARAMS_FILE)
    weights = LossWeights.model_validate_json(json.dumps(params["inversion"]["loss_weights"]))
    examples = build_edits(task, "train", 1000 * seed, n + HELD_OUT)
    rows = (range(n), range(n, n + HELD_OUT))
    learned_from, held_out = encode_split(sampler, examples.before, examples.exact, examples.instructions, rows, flip=True)
    changes: dict[str, Any] = {"steps": QUICK_STEPS if quick else STEPS} | METHODS[method]
    settings = InversionSettings(
        task=task, n_examples=n, n_held_out=HELD_OUT, lr=0.05, batch_size=8, eval_every_steps=25, patience=1000, seed=seed,
        loss_weights=weights, **changes,
    )  # fmt: skip
    start = time.perf_counter()
    test = build_edits(task, "held_out", 0, QUICK_EDITS if quick else EDITS)
    edit_settings = EditSettings().with_changes(params["evaluation"]["settings"])
    learned = invert(
        sampler, learned_from, held_out,
        settings.model_copy(update={"steps": 0, "adapter_rank": 0}) if method == "textual_inversion" else settings,
    )  # fmt: skip
    texts = examples.instructions[n:]
    if method == "textual_inversion":
        word = textual_inversion.learn(sampler, learned_from, learned.v, settings)
        texts, test.instructions[:] = ([f"{word} {text}" for text in instructions] for instructions in (texts, test.instructions))
    threshold = None
    if method != "zero_shot":
        pictures = (examples.before[n:], examples.exact[n:])
        threshold = choose_change_threshold(sampler, task, learned, *pictures, texts, edit_settings)
    sampler.add_task(task, learned.v, learned.adapter, threshold)
    seconds = time.perf_counter() - start
    output = make_edits(sampler, test, [task] * len(test.instructions), edit_settings, list(range(len(test.instructions))))
    success = test.judge(output).success
    figures = {
        "success": float(success.mean()), "n_edits": len(success), "seconds": round(seconds, 1), "start": learned.start,
        "change_threshold": threshold,
    }  # fmt: skip
    return figures, output


def plan(quick: bool) -> list[Entry]:
    """(task, method, examples, seed), most important first."""
    if quick:
        return [("contour", method, 1, 0) for method in METHODS]
    main = [(task, "adapter", 30, 0) for task in TASKS] + [(task, "zero_shot", 30, 0) for task in TASKS]
    others = [(task, method, 30, 0) for method in ("embedding", "textual_inversion", "expert") for task in TASKS[:2]]
    counts = [(task, "adapter", n, 0) for n in EXAMPLES if n != 30 for task in TASKS[:2]]
    seeds = [(task, "adapter", 30, seed) for seed in SEEDS[1:] for task in TASKS]
    rest = [(task, method, n, seed) for seed in SEEDS for n in EXAMPLES for method in METHODS for task in TASKS]
    return list(dict.fromkeys(main + others + seeds + counts + rest))


def draw_chart(results: list[dict[str, Any]], path: Path) -> None:
    """Success by the number of examples, one panel per task, one line per method; the mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3))
    axes = figure.subplots(1, len(TASKS), sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        for method in METHODS:
            counts = sorted({row["examples"] for row in results if (row["task"], row["method"]) == (task, method)})
            means = [mean_success(results, task, method, n) for n in counts]
            axis.plot(counts, means, marker="o", label=method)
        axis.set_title(task, fontsize=10)
        axis.set_xscale("log")
        axis.set_xlabel("examples")
    axes[0].set_ylabel("edit success")
    axes[0].set_ylim(0, 1)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def mean_success(results: list[dict[str, Any]], task: str, method: str, n: int) -> float | None:
    """The mean over the finished seeds; None if there are none."""
    values = [row["success"] for row in results if (row["task"], row["method"], row["examples"]) == (task, method, n)]
    return float(np.mean(values)) if values else None


def results_key(editor: Path, quick: bool) -> str:
    """Hash of what the results depend on: the editor, the settings, and the code that learns, edits and judges."""
    params = config.read_yaml(command.ROOT / config.PARAMS_FILE)
    settings = {
        "quick": quick, "edit": params["evaluation"]["settings"], "loss_weights": params["inversion"]["loss_weights"],
    }  # fmt: skip
    return content_key(settings, editor, *(command.ROOT / path for path in CODE))


def read_finished(folder: Path) -> dict[Entry, dict[str, Any]]:
    """The finished entries that an earlier run stored in the folder, with their rows of the result."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("[!.]*.json"))]
    return {(row["task"], row["method"], row["examples"], row["seed"]): row for row in rows}


def run_and_store(folder: Path, entry: Entry, editor: Path, quick: bool) -> None:
    """Run one entry of the plan; its row and, for the main ones, a sheet of edits are stored in the folder."""
    task, method, n, seed = entry
    figures, output = run(editor, task, method, n, seed, quick)
    if (method, n, seed) == ("adapter", 30, 0):
        test = build_edits(task, "held_out", 0, 8)
        sheet = [("before", test.before), ("edited", output[:8]), ("exact", test.exact)]
        grid = contact_sheet.picture_grid(sheet, test.instructions, 2, f"{task}, learned from {n} examples")
        grid.save(folder / f"{task}.png")
    row = {"task": task, "method": method, "examples": n, "seed": seed, **figures}
    with replacing(folder / f"{task}-{method}-{n}-{seed}.json") as file:
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")


def main() -> None:
    """See above."""
    parser = command.argument_parser(__doc__, f"{QUICK_STEPS} steps of each method on one example of one task")
    command.add_editor(parser)
    parser.add_argument("--most", type=int, default=10**6, metavar="N", help="stop after the first N entries of the plan")
    args = parser.parse_args()
    folder = command.ROOT / "scratch" / "bench" / "inversion" / results_key(args.editor, args.quick)
    if args.quick:
        shutil.rmtree(folder, ignore_errors=True)  # a smoke test runs everything
    folder.mkdir(parents=True, exist_ok=True)
    finished = read_finished(folder)
    for entry in plan(args.quick)[: args.most]:
        if entry not in finished:
            run_and_store(folder, entry, args.editor, args.quick)
    finished = read_finished(folder)
    results = [finished[entry] for entry in plan(args.quick) if entry in finished]
    draw_chart(results, command.result_path(__file__, args.quick, ".png"))
    for sheet in folder.glob("*.png"):
        shutil.copyfile(sheet, command.result_path(__file__, args.quick, f"_{sheet.name}"))
    thirty = {task: {method: mean_success(results, task, method, 30) for method in METHODS} for task in TASKS}
    figures = {"success_at_30_examples": thirty, "results": results}
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
