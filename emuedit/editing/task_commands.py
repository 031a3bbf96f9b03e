"""`emuedit tasks {list,show,add,remove}`: the tasks of an editor, and the packs that add tasks."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emuedit.data.atomic_file import replacing
from emuedit.editor.package_layout import PACK_FOLDER, find_packs
from emuedit.progress import waiting
from emuedit.tasks import find_task

if TYPE_CHECKING:
    from emuedit.editing.api import Editor
    from emuedit.editor.task_pack import TaskPack


def add_commands(commands: Any) -> None:
    """Add the commands to `emuedit`'s parser."""
    tasks = commands.add_parser("tasks", help="list the tasks of the editor, add and remove task packs")
    verbs = tasks.add_subparsers(required=True, metavar="verb")
    command = verbs.add_parser("list", help="list the tasks of the editor")
    command.set_defaults(run=_list)
    _add_model(command)
    command = verbs.add_parser("show", help="show how the task of a pack was learned")
    command.set_defaults(run=_show)
    command.add_argument("pack", help=f"file, or task name in {PACK_FOLDER}")
    command = verbs.add_parser("add", help=f"copy a pack to {PACK_FOLDER}, if it matches the editor")
    command.set_defaults(run=_add)
    command.add_argument("pack", type=Path, help="file written by `emuedit learn`")
    _add_model(command)
    command = verbs.add_parser("remove", help=f"delete a pack from {PACK_FOLDER}")
    command.set_defaults(run=_remove)
    command.add_argument("name", help="name of its task")


def format_tasks(editor: Editor) -> str:
    """A table of the tasks: name, origin and description."""
    lines = [f"{'task':14}{'learned':12}what it does"]
    for name in editor.tasks:
        row = find_task(name)
        adapter = editor.sampler.adapters.get(name)
        added = "pack" if adapter is None else f"pack, r {adapter.rank}"
        origin = added if name in editor.sampler.inverted_tasks else "training"
        lines.append(f"{name:14}{origin:12}{row.description if row else 'custom task'}")
    return "\n".join(lines)


def format_pack(pack: TaskPack, file: Path) -> str:
    """Content of a pack, and how it was learned."""
    adapter = (
        "none: only the embedding" if pack.adapter is None else f"rank {pack.adapter.rank}, {len(pack.adapter.layers)} layers"
    )
    lines = [
        f"{file}: {pack.name}, {file.stat().st_size / 2**20:.2f} MiB, for the editor {pack.editor_fingerprint!r}",
        f"examples: {pack.n_examples}",
        f"adapter: {adapter}",
        f"instructions: {', '.join(map(repr, pack.instructions[:8])) or 'none'}",
        "record:",
        json.dumps(pack.record, indent=1, default=str),
    ]
    return "\n".join(lines)


def install(pack: Path, editor: Editor) -> Path:
    """Copy a pack to PACK_FOLDER as `<task>.safetensors`.

    Raises TaskPackError if it does not match the editor, and if a pack of another editor is there; nothing is changed then.
    """
    from emuedit.editor import task_pack
    from emuedit.editor.task_pack import TaskPackError

    added = editor.add_pack(pack)
    target = PACK_FOLDER / f"{added.name}.safetensors"
    try:
        task_pack.check_replaceable(target, added.editor_fingerprint)
    except TaskPackError:
        editor.remove_task(added.name)
        raise
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        shutil.copyfile(pack, partial)
    return target


def _list(options: argparse.Namespace) -> None:
    print(format_tasks(_load(options)))


def _show(options: argparse.Namespace) -> None:
    from emuedit.editor import task_pack

    file = Path(options.pack)
    if options.pack in _installed_packs() or not file.is_file():
        file = _find_installed(options.pack)
    print(format_pack(task_pack.load(file), file))


def _add(options: argparse.Namespace) -> None:
    editor = _load(options)
    target = install(options.pack, editor)
    print(f"{target}: `emuedit edit --task {target.stem}` uses it{_describe_prediction(editor, target.stem)}")


def _describe_prediction(editor: Editor, name: str) -> str:
    predictor = editor.predictor
    knows = predictor is not None and name in predictor.new_tasks
    return ", as do instructions similar to its examples" if knows else "; the task predictor cannot choose it"


def _remove(options: argparse.Namespace) -> None:
    file = _find_installed(options.name)
    file.unlink()
    print(f"{file}: removed")


def _installed_packs() -> dict[str, Path]:
    """The packs in PACK_FOLDER by task name."""
    return {file.stem: file for file in find_packs(PACK_FOLDER)}


def _find_installed(name: str) -> Path:
    """The pack of a task in PACK_FOLDER. Raises TaskPackError, which lists the packs there, if there is none."""
    from emuedit.editor.task_pack import TaskPackError

    packs = _installed_packs()
    if name not in packs:
        raise TaskPackError(f"want a task pack, got {name!r}; packs in {PACK_FOLDER}: {', '.join(packs) or 'none'}")
    return packs[name]


def _load(options: argparse.Namespace) -> Editor:
    from emuedit.editing.api import Editor

    with waiting("loading the editor"):
        return Editor.load(options.model)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="the editor, as for `emuedit edit`; default: the champion, else this folder's editor")
