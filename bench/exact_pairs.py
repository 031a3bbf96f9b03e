"""What are our own pairs worth? The editor trained on them, beside the same editor trained on the renderer's exact pairs.

`uv run python bench/exact_pairs.py [--quick]` writes `bench/results/exact_pairs.json`; its last line is the same JSON.
Both are judged on the same held-out edits in one run. It wants what `uv run retrain` leaves in data/ and models/.
`ratio` is the overall edit success of our own pairs over that of the exact ones: how good the data pipeline is.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from emuedit import config
from emuedit.data.publish import read_folder
from emuedit.data.records import Verdict
from emuedit.stages import evaluation, train
from toyworld.edits import exact_dataset

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "bench/results/exact_pairs.json"


def world(root: Path, **models: Path) -> Path:
    """A folder beside the project's own with the same code and knobs, and these models."""
    (root / "models").mkdir(parents=True, exist_ok=True)
    links = {root / "emuedit": ROOT / "emuedit", root / "params.yaml": ROOT / "params.yaml"}
    for link, target in (links | {root / "models" / name: target for name, target in models.items()}).items():
        if not link.exists():
            link.symlink_to(target)
    return root


def success(root: Path, tasks: tuple[str, ...], quick: bool) -> dict[str, float | None]:
    """Edit success per task of the editor in `root`, told the true task, so that only the editor is measured."""
    knobs = config.load(evaluation.EvaluationParams, "evaluation", ROOT / "params.yaml")
    n_edits = 4 if quick else knobs.n_edits
    evaluation.run(knobs.model_copy(update={"systems": ("told",), "tasks": tasks, "n_edits": n_edits}), root)
    found: dict[str, float | None] = json.loads((root / evaluation.OUT / "metrics.json").read_text())["edit_success"]["told"]
    return found


def main() -> None:
    """Train on exact pairs, as many of each task as the gates kept of ours; evaluate both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps and edits: proves that it runs, measures nothing")
    quick = parser.parse_args().quick
    kept = Counter(one.task for one in read_folder(ROOT / "data/dataset", Verdict) if one.kept)
    none = ROOT / "scratch/bench/none"  # no task packs: they belong to another editor
    none.mkdir(parents=True, exist_ok=True)
    same = {"router": ROOT / "models/router", "inversion": none}
    beside = world(ROOT / "scratch/bench/exact_pairs", **same)
    own = world(ROOT / "scratch/bench/own_pairs", editor=ROOT / "models/editor", **same)
    exact_dataset.write_dataset(beside, {name: min(n, 4) if quick else n for name, n in kept.items()})
    knobs = config.load(train.TrainParams, "train", ROOT / "params.yaml")
    train.run(knobs.model_copy(update={"steps": 2}) if quick else knobs, beside)
    tasks = tuple(kept)
    ours, theirs = success(own, tasks, quick), success(beside, tasks, quick)
    ratio = round((ours["overall"] or 0.0) / max(theirs["overall"] or 0.0, 1e-9), 3)
    figures = {"pairs": dict(kept), "own": ours, "exact": theirs, "ratio": ratio}
    if not quick:
        RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
