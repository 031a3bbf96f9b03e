"""How good are the generated pairs? Compare an editor trained on them with one trained on exact pairs.

`uv run python bench/exact_pairs.py [--quick]` writes `bench/results/exact_pairs.json`; its last line is the same JSON.
It needs `data/dataset` and `models/editor`, the editor that was trained on the generated pairs.

Exact pairs come from the renderer: equally many per task as the filters kept. Both editors are evaluated on the same
held-out edits, with the true task given. `ratio` is the overall edit success with generated pairs over that with exact
pairs.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from harness import command

from emuedit import config
from emuedit.data.dependencies import CODE_ROOT
from emuedit.data.publish import read_folder
from emuedit.data.records import Verdict
from emuedit.stages import dataset, evaluation, train
from toyworld.edits import exact_dataset

QUICK_TASKS, QUICK_PAIRS, QUICK_EDITS, QUICK_STEPS = 3, 2, 1, 2
"""With `--quick`: tasks, pairs per task, edits per task, and steps of training and of editing."""
SYSTEM = "true_task"
"""The evaluated system: the editor with the true task, to exclude the task predictor."""


def create_workspace(root: Path, params_file: Path, editor: Path | None = None) -> Path:
    """A workspace with the same params and toy models, and this editor, without inverted tasks.

    A workspace of an earlier run gets links to the present inputs.
    """
    (root / "models" / "inversion").mkdir(parents=True, exist_ok=True)
    links = {root / "params.yaml": params_file, root / "toyworld": CODE_ROOT / "toyworld"}
    if editor is not None:
        links[root / train.OUT] = editor
    for link, target in links.items():
        command.replace_link(link, target)
    return root


def train_on_exact_pairs(workspace: Path, counts: Mapping[str, int], quick: bool) -> None:
    """Write `counts` exact pairs per task and train the editor on them, with the settings of `params.yaml`."""
    counts = {task: min(n, QUICK_PAIRS) if quick else n for task, n in counts.items()}
    exact_dataset.write_dataset(workspace, counts)
    params = config.load(train.TrainParams, "train", workspace / "params.yaml")
    params = params.model_copy(update={"steps": QUICK_STEPS, "processes": 1}) if quick else params
    train.run(params, workspace)


def edit_success(workspace: Path, tasks: tuple[str, ...], quick: bool) -> dict[str, float | None]:
    """Edit success of the workspace's editor per task, and `overall`."""
    params = config.load(evaluation.EvaluationParams, "evaluation", workspace / "params.yaml")
    params = params.model_copy(update={"systems": (SYSTEM,), "tasks": tasks})
    if quick:
        settings = params.settings.with_changes({"steps": QUICK_STEPS})
        params = params.model_copy(update={"n_edits": QUICK_EDITS, "settings": settings})
    evaluation.run(params, workspace)
    metrics = json.loads((workspace / evaluation.OUT / "metrics.json").read_text(encoding="utf-8"))
    success: dict[str, float | None] = metrics["edit_success"][SYSTEM]
    return success


def main() -> None:
    """Train on exact pairs, evaluate both editors, write, print."""
    parser = command.argument_parser(
        __doc__, quick="few tasks, pairs, steps and edits: a smoke test without meaningful measurements"
    )
    command.add_workspace(parser)
    args = parser.parse_args()
    command.require_outputs(args.workspace, dataset.OUT, train.OUT)
    counts = Counter(verdict.task for verdict in read_folder(args.workspace / dataset.OUT, Verdict) if verdict.kept)
    if args.quick:
        torch.set_num_threads(1)
        counts = Counter(dict(counts.most_common(QUICK_TASKS)))
    params_file = args.workspace / "params.yaml"
    folder = args.workspace / "scratch" / "bench" / ("exact_pairs.quick" if args.quick else "exact_pairs")
    generated = create_workspace(folder / "generated", params_file, args.workspace / train.OUT)
    exact = create_workspace(folder / "exact", params_file)
    train_on_exact_pairs(exact, counts, args.quick)
    with_generated, with_exact = (edit_success(root, tuple(counts), args.quick) for root in (generated, exact))
    ratio = (with_generated["overall"] or 0.0) / max(with_exact["overall"] or 0.0, 1e-9)
    figures = {"pairs": dict(counts), "generated": with_generated, "exact": with_exact, "ratio": round(ratio, 3)}
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
