"""`python -m toyworld.training.base_editor FOLDER`: trains the toy world's base editor with the pipeline's own stages.

The base editor is trained on all sixteen tasks, but not on the words in `toyworld/base_editor/held_back.txt`. FOLDER becomes a
workspace with the project's `params.yaml`, changed by `toyworld/base_editor/params.yaml`. Finished stages are skipped and
interrupted stages resume, so the same command can be repeated, on a CPU or a GPU.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml

from emuedit import config
from emuedit.data.dependencies import CODE_ROOT, SUMMARY_FILE
from emuedit.data.publish import read_summary, write_summary
from emuedit.data.records import EvalRecord
from emuedit.data.shards import read_shard
from emuedit.prompts.moderation import load_word_list
from emuedit.stages import captions, dataset, evaluation, instructions, pairs, router, train, validation
from toyworld.training.__main__ import WEIGHTS

FILES = CODE_ROOT / "toyworld/base_editor"
OUTPUTS = {
    "captions": captions.OUT, "instructions": instructions.OUT, "pairs": pairs.OUT, "router": router.OUT, "dataset": dataset.OUT,
    "validation": validation.OUT, "train": train.OUT, "evaluation": evaluation.OUT,
}  # fmt: skip
"""Stage -> its output, in the order of work."""


def prepare(folder: Path) -> None:
    """Create a workspace in a folder. Raises SystemExit if it has other params, whose outputs would be mixed."""
    params = config.merge(config.read_yaml(CODE_ROOT / config.PARAMS_FILE), config.read_yaml(FILES / config.PARAMS_FILE))
    params["train"]["cuda_graph"] = torch.cuda.is_available()
    text = yaml.safe_dump(params, sort_keys=False)
    file = folder / config.PARAMS_FILE
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise SystemExit(f"want a folder with the params of this training, got others in {file}; use a new folder")
    (folder / "models/inversion").mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    if not (folder / "toyworld").exists():
        (folder / "toyworld").symlink_to(CODE_ROOT / "toyworld")


def missing_stages(folder: Path) -> list[str]:
    """The first unpublished stage and all later ones."""
    stages = list(OUTPUTS)
    published = [(folder / out / SUMMARY_FILE).exists() for out in OUTPUTS.values()]
    return stages[published.index(False) :] if False in published else []


def success_by_vocabulary(evaluated: Path) -> dict[str, dict[str, float | int]]:
    """Edit success with the true task, for edits whose texts have a held-back word (`held_back`) and for others (`known`).

    Each has the number of `edits`, the success per task and its mean, `overall`. `evaluated` is the
    output of the stage `evaluation`. The texts are the instruction and the captions before and after.
    """
    words = load_word_list(FILES / "held_back.txt")
    successes: dict[str, dict[str, list[bool]]] = {"known": defaultdict(list), "held_back": defaultdict(list)}
    for file in sorted(evaluated.glob("shard-true_task-*.parquet")):
        for edit in read_shard(file, EvalRecord):
            has_one = words.first_match([edit.instruction, edit.source_caption, edit.target_caption]) is not None
            successes["held_back" if has_one else "known"][edit.task].append(edit.success)
    return {vocabulary: _shares(by_task) for vocabulary, by_task in successes.items()}


def _shares(by_task: Mapping[str, list[bool]]) -> dict[str, float | int]:
    shares = {task: sum(values) / len(values) for task, values in by_task.items()}
    overall = {"overall": sum(shares.values()) / len(shares)} if shares else {}  # as in `metrics.json`: each task counts the same
    n_edits = sum(len(values) for values in by_task.values())
    return {"edits": n_edits} | {name: round(share, 4) for name, share in {**overall, **shares}.items()}


def publish(folder: Path, out: Path) -> None:
    """Copy the trained editor to `out`, with its metrics as `metrics.json`."""
    staging = out.with_name(f".{out.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(folder / OUTPUTS["train"], staging)
    summary = read_summary(folder / OUTPUTS["train"])
    evaluated = folder / OUTPUTS["evaluation"]
    metrics = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
    metrics["edit_success_by_vocabulary"] = success_by_vocabulary(evaluated)
    (staging / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    (staging / SUMMARY_FILE).unlink()  # else it would list itself
    write_summary(staging, summary.stage, summary.key, summary.params, summary.counts)
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)


def main() -> None:
    """Run the missing stages, then publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="workspace of the training")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "base_editor", help="folder for the published editor")
    args = parser.parse_args()
    prepare(args.folder)
    paths = [str(CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    for stage in missing_stages(args.folder):
        command = [sys.executable, "-m", f"emuedit.stages.{stage}"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        subprocess.run(command, cwd=args.folder, env=environment, check=True)  # noqa: S603
    publish(args.folder, args.out)
    print(f"published {args.out}")


if __name__ == "__main__":
    main()
