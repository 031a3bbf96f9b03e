"""What does the default run learn, and what does it keep? Its editor compared with the base editor from which it started.

`uv run python bench/vocabulary.py [--quick] [--workspace FOLDER]` writes `bench/results/vocabulary.json`; its last line is the
same JSON. It needs `models/editor` and `models/router` of a default run. Finished tasks are stored, and the same command resumes.

The base editor was trained without some words of the toy world, which the default run's captions contain (unseen words). Both
editors are given the same held-out edits and the true task (`start`, `retrained`); `predicted` is the retrained editor with the
task predictor. Success is that of all edits, of those with an unseen word in their texts (`new`), and of the others (`known`);
each is the mean over the tasks.
`new_over_known` is the ratio of the last two. Differences, retrained minus start, have the central 95 % of a paired bootstrap.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from exact_pairs import create_workspace
from harness import command

from emuedit import config
from emuedit.data.records import EvalRecord
from emuedit.data.shards import read_shard
from emuedit.data.word_list import load_word_list
from emuedit.metrics.report import has_word
from emuedit.promotion.paired_bootstrap import compare_paired
from emuedit.stages import evaluation, router, train
from toyworld.training.base_editor import FILES

SLICES = {"all": "edit_success", "new": "edit_success_new_words", "known": "edit_success_without_new_words"}
"""Key in the result -> table of the evaluation."""
WORDS = FILES / "held_back.txt"
Edits = Mapping[str, Sequence[EvalRecord]]
"""Task -> outputs, in the order of the benchmark."""
EDITS, QUICK_EDITS, QUICK_TASKS, QUICK_STEPS = 64, 1, 2, 1
RESAMPLES = 10_000


def evaluate(workspace: Path, systems: tuple[str, ...], args: argparse.Namespace) -> dict[str, Any]:
    """Run the evaluation of the editor in a workspace; its tables."""
    params = config.load(evaluation.EvaluationParams, "evaluation", workspace / "params.yaml")
    tasks = tuple(config.read_yaml(workspace / "params.yaml")["instructions"]["tasks"])
    slices = {"new_words": str(WORDS)}
    params = params.model_copy(update={"systems": systems, "tasks": tasks, "n_edits": EDITS, "slices": slices})
    if args.quick:
        settings = params.settings.with_changes({"steps": QUICK_STEPS})
        params = params.model_copy(update={"n_edits": QUICK_EDITS, "tasks": params.tasks[:QUICK_TASKS], "settings": settings})
    evaluation.run(params, workspace)
    tables: dict[str, Any] = json.loads((workspace / evaluation.OUT / "metrics.json").read_text(encoding="utf-8"))
    return tables


def read_edits(workspace: Path) -> Edits:
    """The outputs with the true task."""
    files = sorted((workspace / evaluation.OUT).glob("shard-true_task-*.parquet"))
    records = [record for file in files for record in read_shard(file, EvalRecord)]
    by_task = defaultdict(list)
    for record in records:
        by_task[record.task].append(record)
    return by_task


def compare(start: Edits, retrained: Edits, chosen: Callable[[EvalRecord], bool]) -> dict[str, float]:
    """Retrained minus start over the chosen edits: mean over tasks, and bounds of the central 95 %."""
    differences = {
        task: [float(new.success) - old.success for old, new in zip(edits, retrained[task], strict=True) if chosen(old)]
        for task, edits in start.items()
    }
    tasks = [task for task, values in differences.items() if values]
    if not tasks:
        return {}
    difference = compare_paired(differences, tasks, 0.95, RESAMPLES)
    return {"mean": round(difference.mean, 3), "low": round(difference.low, 3), "high": round(difference.high, 3)}


def main() -> None:
    """Evaluate both editors, write, print."""
    parser = command.argument_parser(__doc__, f"{QUICK_EDITS} edit of {QUICK_TASKS} tasks with {QUICK_STEPS} step")
    command.add_workspace(parser)
    command.add_editor(parser)
    args = parser.parse_args()
    command.require_outputs(args.workspace, train.OUT, router.OUT)
    folder = args.workspace / "scratch" / "bench" / ("vocabulary.quick" if args.quick else "vocabulary")
    params_file = args.workspace / config.PARAMS_FILE
    start = create_workspace(folder / "start", params_file, args.editor)
    retrained = create_workspace(folder / "retrained", params_file, args.workspace / train.OUT)
    command.replace_link(retrained / router.OUT, args.workspace / router.OUT)
    tables = {"start": evaluate(start, ("true_task",), args), "retrained": evaluate(retrained, ("true_task", "emuedit"), args)}
    systems = {"start": ("start", "true_task"), "retrained": ("retrained", "true_task"), "predicted": ("retrained", "emuedit")}
    figures: dict[str, Any] = {
        name: {label: tables[editor][table].get(system) for label, table in SLICES.items()}
        for name, (editor, system) in systems.items()
    }
    in_new, in_known = ((figures["retrained"][label] or {}).get("overall") for label in ("new", "known"))
    figures["new_over_known"] = round(in_new / in_known, 3) if in_new is not None and in_known else None
    words = load_word_list(WORDS)
    choices: dict[str, Callable[[EvalRecord], bool]] = {
        "all": lambda _: True, "new": lambda edit: has_word(edit, words), "known": lambda edit: not has_word(edit, words),
    }  # fmt: skip
    before, after = read_edits(start), read_edits(retrained)
    figures["difference"] = {label: compare(before, after, chosen) for label, chosen in choices.items()}
    records = [record for edits in before.values() for record in edits]
    figures["n_edits"] = {label: sum(map(chosen, records)) for label, chosen in choices.items()}
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
