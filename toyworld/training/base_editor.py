"""`python -m toyworld.training.base_editor FOLDER`: trains the toy world's base editor with the pipeline's own stages.

The base editor is trained on all sixteen tasks, but not on the words in `toyworld/base_editor/held_back.txt`. FOLDER becomes a
workspace with the project's `params.yaml`, changed by `toyworld/base_editor/params.yaml`. Finished stages are skipped and
interrupted stages resume, so the same command can be repeated, on a CPU or a GPU. With `--continue`, the published base editor is
trained on further pairs (`toyworld/base_editor/continuation.yaml`).
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from emuedit import config
from emuedit.data.dependencies import CODE_ROOT, SUMMARY_FILE
from emuedit.data.publish import read_summary, write_summary
from emuedit.stages import captions, dataset, evaluation, instructions, pairs, router, train, validation
from toyworld.training.__main__ import WEIGHTS

FILES = CODE_ROOT / "toyworld/base_editor"
CONTINUATION_FILE = "continuation.yaml"
OUTPUTS = {
    "captions": captions.OUT, "instructions": instructions.OUT, "pairs": pairs.OUT, "router": router.OUT, "dataset": dataset.OUT,
    "validation": validation.OUT, "train": train.OUT, "evaluation": evaluation.OUT,
}  # fmt: skip
"""Stage -> its output, in the order of work."""


def prepare(folder: Path, *, continued: bool = False) -> None:
    """Create a workspace in a folder. Raises SystemExit if it has other params, whose outputs would be mixed.

    `train.cuda_graph` depends on the machine: it is set for this one, and may differ.
    continued: train the published base editor on further pairs, not the base model.
    """
    params = config.merge(config.read_yaml(CODE_ROOT / config.PARAMS_FILE), config.read_yaml(FILES / config.PARAMS_FILE))
    if continued:
        params = config.merge(params, config.read_yaml(FILES / CONTINUATION_FILE))
    of_machine = {"train": {"cuda_graph": torch.cuda.is_available()}}
    params = config.merge(params, of_machine)
    file = folder / config.PARAMS_FILE
    if file.exists() and config.merge(config.read_yaml(file), of_machine) != params:
        raise SystemExit(f"want a folder with the params of this training, got others in {file}; use a new folder")
    (folder / "models/inversion").mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    if not (folder / "toyworld").exists():
        (folder / "toyworld").symlink_to(CODE_ROOT / "toyworld")


def missing_stages(folder: Path) -> list[str]:
    """The first unpublished stage and all later ones."""
    stages = list(OUTPUTS)
    published = [(folder / out / SUMMARY_FILE).exists() for out in OUTPUTS.values()]
    return stages[published.index(False) :] if False in published else []


def publish(folder: Path, out: Path) -> None:
    """Copy the trained editor to `out`, with its metrics as `metrics.json`."""
    staging = out.with_name(f".{out.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(folder / OUTPUTS["train"], staging)
    summary = read_summary(folder / OUTPUTS["train"])
    shutil.copy(folder / OUTPUTS["evaluation"] / "metrics.json", staging)
    (staging / SUMMARY_FILE).unlink()  # else it would list itself
    write_summary(staging, summary.stage, summary.key, summary.params, summary.counts)
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)


def main() -> None:
    """Run the missing stages, then publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="workspace of the training")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "base_editor", help="folder for the published editor")
    parser.add_argument("--continue", dest="continued", action="store_true", help="train the published base editor further")
    args = parser.parse_args()
    prepare(args.folder, continued=args.continued)
    paths = [str(CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    for stage in missing_stages(args.folder):
        command = [sys.executable, "-m", f"emuedit.stages.{stage}"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        subprocess.run(command, cwd=args.folder, env=environment, check=True)  # noqa: S603
    publish(args.folder, args.out)
    print(f"published {args.out}")


if __name__ == "__main__":
    main()
