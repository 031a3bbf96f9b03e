"""`python -m toyworld [--out docs/images]`: writes two overview sheets of the toy world."""

import argparse
from pathlib import Path

from toyworld.edits import toy_tasks
from toyworld.figures import scene_sheet, task_sheet


def main() -> None:
    """Write `toyworld.png` and `tasks.png`, and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the sheets")
    parser.add_argument("--start", type=int, default=34, help="index of the first held-out scene to show")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, sheet in (
        ("toyworld", scene_sheet(start=args.start)),
        ("tasks", task_sheet(toy_tasks.TRAINED, start=args.start)),
    ):
        path = args.out / f"{name}.png"
        sheet.save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
