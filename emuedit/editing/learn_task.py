"""Learn a task from a folder of examples: a task pack, its card, and a contact sheet of held-out examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emuedit.core.change_threshold import EDGE_LOW
from emuedit.data import contact_sheet, example_folder
from emuedit.data.example_folder import ExampleEdit, ExamplePictures
from emuedit.data.image_io import Pixels
from emuedit.data.writable_folder import check_writable
from emuedit.editing.api import Editor
from emuedit.editing.editor_inputs import check_instructions
from emuedit.editor import task_pack
from emuedit.editor.package_layout import advise_on_taken_name
from emuedit.editor.task_pack import TaskPack
from emuedit.runtime import rng
from emuedit.training.inversion_examples import encode_split, rows_by_image
from emuedit.training.learned_threshold import choose_change_threshold
from emuedit.training.task_inversion import InversionSettings, invert, training_loss

HELD_OUT_EVERY = 5
"""One in this many images is held out, with all of its examples, for early stopping and the sheet; none if there are fewer."""
SHEET_COLUMNS = 6


class LearnError(ValueError):
    """Raised for the name of a task that exists, and for settings out of range."""


@dataclass(frozen=True)
class Split:
    """Rows of training and held-out examples; both are all rows if there are too few."""

    learned: list[int]
    held_out: list[int]

    @classmethod
    def of(cls, before: Pixels) -> Split:
        """Hold out a fifth of the images before an edit, uint8 [N, H, W, 3], with all of their examples; equal ones count once.

        The fifth is random, the same for each number of images; images with the fewest examples come first.
        """
        groups = rows_by_image(before)
        shuffled = sorted((groups[i] for i in rng("learn", "split", len(groups)).permutation(len(groups))), key=len)
        held_out = sorted(row for group in shuffled[: len(groups) // HELD_OUT_EVERY] for row in group)
        rows = range(len(before))
        return cls([row for row in rows if row not in held_out], held_out or list(rows))


def check_new_name(name: str, editor: Editor) -> None:
    """Raise LearnError for a name that the editor or its task predictor already has."""
    if name in editor.reserved_names:
        names, advice = ", ".join(editor.reserved_names), advise_on_taken_name(name)
        raise LearnError(f"want a new name, got {name!r}; the editor has the names {names}; {advice}")


def learn(editor: Editor, examples: Sequence[ExampleEdit], settings: InversionSettings, out: Path) -> TaskPack:
    """Learn the task `settings.task`, add it to the editor, and write `<task>.safetensors`, `.md` and `.png` to `out`.

    The numbers of `Split` replace `n_examples` and `n_held_out` of the settings. Raises LearnError for the name, ExampleError for
    the images, EditError for an instruction that `Editor.edit` refuses, TaskPackError if `out` has another editor's pack of that
    name, and FolderError if `out` cannot be written; nothing is computed or written then.
    """
    check_new_name(settings.task, editor)
    check_writable(out)
    sampler, file = editor.sampler, out / f"{settings.task}.safetensors"
    task_pack.check_replaceable(file, sampler.fingerprint)
    instructions = [example.instruction for example in examples]
    check_instructions(instructions)
    side_px = editor.settings.resolution or sampler.resolution_px
    pictures = example_folder.load_pictures(examples, max(1, round(side_px / sampler.grid_px)) * sampler.grid_px)
    split = Split.of(pictures.before)
    settings = settings.model_copy(update={"n_examples": len(split.learned), "n_held_out": len(split.held_out)})
    rows = (split.learned, split.held_out)
    batches = encode_split(sampler, pictures.before, pictures.after, instructions, rows, settings.flip)
    learned = invert(sampler, *batches, settings)
    change_threshold = choose_change_threshold(
        sampler,
        settings.task,
        learned,
        before=pictures.before[split.held_out],
        after=pictures.after[split.held_out],
        instructions=[instructions[row] for row in split.held_out],
        settings=editor.settings,
    )
    origin = {"settings": settings.model_dump(mode="json")}
    pack = learned.pack(sampler.fingerprint, settings, instructions, origin, change_threshold)
    out.mkdir(parents=True, exist_ok=True)
    task_pack.save(pack, file)
    editor.add_pack(file)
    _draw_sheet(editor, settings.task, pictures, instructions, split, out / f"{settings.task}.png")
    (out / f"{settings.task}.md").write_text(_card(pack, split, file), encoding="utf-8")
    return pack


def settings_for(name: str, n_examples: int, editor_folder: Path | None = None, **changes: int | float) -> InversionSettings:
    """Settings for this many examples, not yet split, with the loss settings of the editor's training if its folder has them.

    Raises ValidationError for values out of range.
    """
    values = {"adapter_rank": 32, "steps": 300, "batch_size": 8, "lr": 0.05, "patience": 10, "eval_every_steps": 10} | changes
    loss = training_loss(editor_folder) if editor_folder else {}
    return InversionSettings.model_validate(values | {"task": name, "n_examples": n_examples, "n_held_out": n_examples} | loss)


def _draw_sheet(editor: Editor, task: str, pictures: ExamplePictures, instructions: list[str], split: Split, file: Path) -> None:
    rows = split.held_out[:SHEET_COLUMNS]
    edited = editor.edit([pictures.before[row] for row in rows], [instructions[row] for row in rows], [task] * len(rows))
    sheet = contact_sheet.picture_grid(
        [("before", pictures.before[rows]), ("edited", np.stack(edited)), ("wanted", pictures.after[rows])],
        [instructions[row] for row in rows],
        lines=3,
        title=f"{task}, {_held_out_words(split)}",
    )
    sheet.save(file)


def _held_out_words(split: Split) -> str:
    return "on the training examples" if split.held_out == split.learned else "on held-out examples"


def _card(pack: TaskPack, split: Split, file: Path) -> str:
    adapter = "only the embedding" if pack.adapter is None else f"the embedding and an adapter of rank {pack.adapter.rank}"
    kept = ""
    if pack.change_threshold is not None:
        bound = EDGE_LOW * pack.change_threshold
        kept = f"\nPixels that an edit changes by less than {bound:g} (sum over RGB in [0, 1]) keep their values.\n"
    wordings = "\n".join(f"- {text}" for text in pack.instructions[:20])
    return f"""\
# {pack.name}

A task pack for the editor `{pack.editor_fingerprint}`: {adapter}, learned from {pack.n_examples} examples
in {pack.record["steps"]} steps, starting from the task `{pack.record["start"]}`. The loss {_held_out_words(split)}
fell from {pack.record["loss_start"]:.4f} to {pack.record["loss"]:.4f}.
{kept}
![edits {_held_out_words(split)}]({pack.name}.png)

```sh
uv run emuedit tasks add {file.name}
uv run emuedit edit in.png "{pack.instructions[0]}" --task {pack.name} -o out.png
```

It works only with that editor. Its example instructions, from which the task predictor learns it:

{wordings}
"""
