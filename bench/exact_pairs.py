"""What are our own pairs worth? The editor trained on them, beside the same editor trained on the renderer's exact pairs.

`uv run python bench/exact_pairs.py [--quick]` writes `bench/results/exact_pairs.json`; its last line is the same JSON.
Both are judged on the same held-out edits in one run. It wants what `uv run retrain` leaves in data/ and models/.
`ratio` is the overall edit success of our own pairs over that of the exact ones: how good the data pipeline is.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from emuedit import evaluation, train
from emuedit import params as house
from emuedit.records import Verdict, read_folder
from emuedit.toyworld import exact

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "bench/results/exact_pairs.json"


def world(root: Path) -> None:
    """A folder beside the project's own, with the same code and models."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("emuedit", "params.yaml"):
        if not (root / name).exists():
            (root / name).symlink_to(ROOT / name)


def success(root: Path, quick: bool) -> dict[str, float | None]:
    """Edit success per task of the editor in `root`, told the true task, so that only the editor is measured."""
    knobs = house.load(evaluation.Params, "evaluation", ROOT / "params.yaml")
    trained = tuple(name for name in knobs.tasks if name in house_tasks())
    knobs = knobs.model_copy(update={"systems": ("told",), "tasks": trained, "n_edits": 4 if quick else knobs.n_edits})
    evaluation.run(knobs, root)
    found: dict[str, float | None] = json.loads((root / evaluation.OUT / "metrics.json").read_text())["edit_success"]["told"]
    return found


def house_tasks() -> set[str]:
    """The tasks that our own pairs teach."""
    return {one.task for one in read_folder(ROOT / "data/dataset", Verdict) if one.kept}


def main() -> None:
    """Train on exact pairs, as many of each task as the gates kept of ours; evaluate both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps and edits: proves that it runs, measures nothing")
    args = parser.parse_args()
    kept = Counter(one.task for one in read_folder(ROOT / "data/dataset", Verdict) if one.kept)
    beside = ROOT / "scratch/bench/exact_pairs"
    world(beside)
    exact.write(beside, {name: min(n, 4) if args.quick else n for name, n in kept.items()})
    knobs = house.load(train.Params, "train", ROOT / "params.yaml")
    train.run(knobs.model_copy(update={"steps": 2}) if args.quick else knobs, beside)
    own = ROOT / "scratch/bench/own_pairs"
    world(own)
    for root in (own, beside):
        (root / "models").mkdir(exist_ok=True)
        for name in ("editor", "router", "inversion"):
            if not (root / "models" / name).exists():
                (root / "models" / name).symlink_to(ROOT / "models" / name)
    figures = {"pairs": dict(kept), "own": success(own, args.quick), "exact": success(beside, args.quick)}
    figures["ratio"] = round((figures["own"]["overall"] or 0) / max(figures["exact"]["overall"] or 0, 1e-9), 3)  # type: ignore[assignment]
    if not args.quick:
        RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
