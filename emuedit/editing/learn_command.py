"""`emuedit learn examples/ --name cutout`: learn a task from a few images before and after an edit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emuedit.config import describe_values
from emuedit.editor.package_layout import PACK_FOLDER
from emuedit.progress import waiting

_OPTIONS = {"steps": "--steps", "adapter_rank": "--rank", "seed": "--seed"}
"""Setting of the inversion -> the option that changes it."""


def add_commands(commands: Any) -> None:
    """Add the command to `emuedit`'s parser."""
    command = commands.add_parser("learn", help="learn a new task from a folder of examples")
    left = "the pack, if it was written, is complete, but its sheet and card may be missing"
    command.set_defaults(run=_learn, stop_note=left)
    command.add_argument("examples", type=Path, help="folder with edits.csv (image, result, instruction), or before/ and after/")
    command.add_argument("--name", required=True, help="name of the task: a letter, then letters, digits and _; lower case")
    once = "the instruction, for before/ and after/; several are used in turn"
    command.add_argument("--instruction", action="append", default=[], metavar="TEXT", help=once)
    command.add_argument("-o", "--out", type=Path, default=PACK_FOLDER, help=f"default: {PACK_FOLDER}")
    command.add_argument("--model", help="the editor, as for `emuedit edit`")
    command.add_argument("--steps", type=int, help="maximum number of optimizer steps (default: 300)")
    rank = "rank of the task's adapter (default: 32; 8: a smaller pack); 0: only the embedding, as in Emu Edit"
    command.add_argument("--rank", type=int, help=rank)
    command.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    when = "for instructions in another language than English, or if the results contain letters or a logo"
    no_flip = f"do not learn from mirrored copies; {when}"
    command.add_argument("--no-flip", action="store_true", help=no_flip)


def _learn(options: argparse.Namespace) -> None:
    from emuedit.data import example_folder
    from emuedit.editing import editor_inputs, learn_task
    from emuedit.editing.api import Editor
    from emuedit.editor import task_pack
    from emuedit.editor.package_folder import editor_folder

    task_pack.check_name(options.name)
    examples = example_folder.read_examples(options.examples, options.instruction)
    editor_inputs.check_instructions([example.instruction for example in examples])
    changes = {"steps": options.steps, "adapter_rank": options.rank, "seed": options.seed, "flip": not options.no_flip}
    named = {name: value for name, value in changes.items() if value is not None}
    try:
        learn_task.settings_for(options.name, len(examples), **named)
    except ValidationError as error:
        raise learn_task.LearnError("; ".join(describe_values(error, _OPTIONS))) from error
    with waiting("loading the editor"):
        editor = Editor.load(options.model)
    settings = learn_task.settings_for(options.name, len(examples), editor_folder(editor.folder), **named)
    pack = learn_task.learn(editor, examples, settings, options.out)
    figures = f"{pack.record['steps']} steps, loss {pack.record['loss_start']:.4f} -> {pack.record['loss']:.4f}"
    print(f"{options.out / options.name}.safetensors: learned from {pack.n_examples} examples, {figures}")
    print(f"{options.out / options.name}.png: inspect it; {options.name}.md describes how to use the pack")
