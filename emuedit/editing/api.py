"""The user-facing editor: `Editor.load(...)` opens a packaged model, `edit` edits images by instruction."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from PIL import Image

from emuedit.data.file_manifest import check_manifest
from emuedit.data.image_io import MAX_PIXELS, Pixels
from emuedit.editing.edit_error import EditError, RefusedInstructionError
from emuedit.editing.edit_turn import TaskChoice, Turn
from emuedit.editing.editor_inputs import (
    Picture,
    check_image,
    check_images,
    check_instructions,
    check_settings,
    check_tasks,
    describe,
    to_rgb,
)
from emuedit.editor import changed_area
from emuedit.editor.package_folder import editor_folder, find_package, read_settings, resolve_source
from emuedit.editor.package_layout import BUILT_IN_PACKS, PACK_FOLDER, ROUTER, USER_PACKS, find_packs
from emuedit.editor.settings import EditSettings

if TYPE_CHECKING:
    import torch

    from emuedit.editor.sampling import EditSampler
    from emuedit.editor.sampling_options import ReportStep
    from emuedit.editor.task_pack import TaskPack
    from emuedit.predictor.task_predictor import TaskPredictor

P = TypeVar("P", Image.Image, Pixels)


class TruncatedInstructionWarning(UserWarning):
    """Warning for an instruction that exceeds the text encoder's token limit: its end has no effect."""


class Editor:
    """Edits images by instruction.

        editor = Editor.load("models")
        edited = editor.edit(Image.open("in.png"), "make the circle red")
        turns = editor.edit_turns(pixels, ["make the circle red", "remove the star"])

    sampler: the trained editor on tensors, with the tasks that packs added.
    predictor: chooses the task of an instruction; None: every call names its task.
    settings: defaults of all edits, those of the evaluation unless `load` gets others; every method accepts others.
    name: display name, such as `models:/emuedit-editor@champion`.
    folder: the package from which it was loaded.
    """

    def __init__(
        self,
        sampler: EditSampler,
        predictor: TaskPredictor | None,
        settings: EditSettings,
        name: str = "",
        folder: Path = Path(),
        max_pixels_per_batch: int | None = None,
    ) -> None:
        """Arguments: the attributes of the class, and max_pixels_per_batch, see `load`. Raises EditError if it is below 1."""
        if max_pixels_per_batch is not None:
            if max_pixels_per_batch < 1:
                raise EditError(f"want max_pixels_per_batch of at least 1, got {max_pixels_per_batch}; None: the default")
            sampler.max_pixels_per_batch = max_pixels_per_batch
        self.sampler, self.predictor, self.settings = sampler, predictor, settings
        self.name, self.folder = name, folder

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        settings: EditSettings | None = None,
        max_pixels_per_batch: int | None = None,
    ) -> Editor:
        """Open an editor.

        source: a folder, a registered model (`models:/name@alias`, `models:/name/3`), a run's model (`runs:/id/path`), or a
          hub id `owner/name`; None: the champion, or `models/` if none is registered.
        device, dtype: device and number format, by name or as torch objects; 'auto' chooses fast and correct ones here.
        settings: defaults of all edits; replace those of the package (see `read_settings`).
        max_pixels_per_batch: bound on the memory of a list of edits: pixels, at the size at which images are edited, that enter
          the network at once, at least one image; None: eight images of 512 px. Results do not depend on it, up to rounding.
        Raises PackageError for a source without an editor (the message says what was found), and ManifestError for a
        registered package whose files were changed, EditError for settings of another type and max_pixels_per_batch below 1.
        """
        from emuedit.editor import sampling, task_pack
        from emuedit.editor.task_pack import TaskPackError
        from emuedit.predictor import task_predictor
        from emuedit.runtime import Runtime

        check_settings(settings, EditSettings())
        folder, name = resolve_source(source)
        root = find_package(folder)
        check_manifest(root)
        runtime = Runtime.choose(str(device), str(dtype).removeprefix("torch."))
        sampler = sampling.load(editor_folder(root), runtime)
        predictor = task_predictor.load(str(root / ROUTER), runtime.device) if (root / ROUTER).is_dir() else None
        editor = cls(sampler, predictor, settings or read_settings(root), name, root, max_pixels_per_batch)
        for pack in find_packs(root / BUILT_IN_PACKS):
            base = task_pack.read_editor_fingerprint(pack)
            if base == sampler.fingerprint:
                editor.add_pack(pack)
            else:  # after `dvc repro train`, the editor works without this task
                problem = f"want a pack for the editor {sampler.fingerprint}, got one for {base}; run the stage inversion"
                print(f"{pack} was skipped: {problem}", file=sys.stderr, flush=True)
        beside = root / USER_PACKS
        workspace_packs = [] if beside.resolve() == PACK_FOLDER.resolve() else find_packs(PACK_FOLDER)
        for pack in (*find_packs(beside), *workspace_packs):
            try:
                is_of_workspace = source is not None and pack in workspace_packs
                if is_of_workspace and task_pack.read_editor_fingerprint(pack) != sampler.fingerprint:
                    continue  # most packs of the workspace are for its own editor
                editor.add_pack(pack)
            except TaskPackError as error:  # e.g. after retraining: the editor works without this task
                print(f"{pack} was skipped: {error}", file=sys.stderr, flush=True)
        return editor

    def add_pack(self, file: str | Path) -> TaskPack:
        """Add the task of a pack: `tasks` gets its name, and the task predictor learns from its example instructions.

        Raises TaskPackError for an invalid file, a pack of another editor, and a name that exists; nothing is added then.
        """
        pack = self.sampler.add_pack(file, self.reserved_names)
        if self.predictor is not None and self.predictor.can_add(pack.instructions):
            self.predictor.add_task(pack.name, pack.instructions)
        return pack

    def remove_task(self, name: str) -> None:
        """Remove the task of a pack. Raises EditError for a task that was not added by a pack."""
        if name not in self.sampler.inverted_tasks:
            raise EditError(
                f"want a task added by a pack, got {name!r}; added tasks: {', '.join(self.sampler.inverted_tasks) or 'none'}"
            )
        self.sampler.remove_task(name)
        if self.predictor is not None:
            self.predictor.remove_task(name)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of this editor."""
        return self.sampler.tasks

    @property
    def reserved_names(self) -> tuple[str, ...]:
        """Names that a new task cannot have: the editor's tasks, and the classes of its task predictor."""
        labels = () if self.predictor is None else (*self.predictor.labels, *self.predictor.new_tasks)
        return tuple(dict.fromkeys((*self.tasks, *labels)))

    @overload
    def edit(self, images: P, instructions: str, tasks: str | None = None, settings: EditSettings | None = None) -> P: ...

    @overload
    def edit(
        self,
        images: Sequence[P],
        instructions: Sequence[str],
        tasks: Sequence[str | None] | None = None,
        settings: EditSettings | None = None,
    ) -> list[P]: ...

    def edit(self, images: Any, instructions: Any, tasks: Any = None, settings: EditSettings | None = None) -> Any:
        """Edit one image by one instruction, or several images by one instruction each.

        images: a PIL image or uint8 array [H, W, 3], or a list of them, of any sizes.
        instructions: what to change, such as "make the circle red"; one per image.
        tasks: names from `editor.tasks`; None: chosen by the task predictor.
        settings: steps, guidance, seed and so on; default: `editor.settings`.
        Returns the input's type: an image for an image, an array for an array, a list for a list.
        Raises RefusedInstructionError for a text that the task predictor does not take for an edit instruction, EditError for
        other invalid arguments: an image of another type, an empty instruction, an unknown task, lists of unequal length, a
        missing task predictor. ImageError for a damaged image, NonFiniteEditError if the network returns NaN or infinity.
        Warns as `choose_tasks`.
        """
        if isinstance(images, Image.Image | np.ndarray):
            check_image(images)
            return self._edit_list([images], [instructions], None if tasks is None else [tasks], settings)[0]
        return self._edit_list(check_images(images), instructions, tasks, settings)

    def _edit_list(
        self,
        images: Sequence[Picture],
        instructions: Sequence[str],
        tasks: Sequence[str | None] | None,
        settings: EditSettings | None,
    ) -> list[Picture]:
        if isinstance(instructions, str) or not isinstance(instructions, Sequence) or len(images) != len(instructions):
            raise EditError(f"want one instruction for each of the {len(images)} images, got {describe(instructions)}")
        settings = check_settings(settings, self.settings)
        choices = self.choose_tasks(instructions, tasks)
        pixels = [to_rgb(image) for image in images]
        outputs = self._edit_by_size(pixels, instructions, [choice.task for choice in choices], settings)
        return [
            Image.fromarray(output) if isinstance(image, Image.Image) else output
            for image, output in zip(images, outputs, strict=True)
        ]

    def edit_turns(
        self,
        image: Picture,
        instructions: Sequence[str],
        tasks: Sequence[str | None] | None = None,
        settings: EditSettings | None = None,
        report: ReportStep | None = None,
    ) -> list[Turn]:
        """Apply instructions to one image in sequence; pixels that a turn does not change stay bit-identical.

        Arguments and errors as for `edit`; `report` is called after each denoising step. A turn has the image before and after
        it, and which area it changed (`Turn.changed`, `Turn.mask`).
        """
        from emuedit.editing import multi_turn
        from emuedit.editor.sampling_options import SamplingOptions
        from emuedit.models.image_tensors import from_uint8, to_uint8

        settings = check_settings(settings, self.settings)
        choices = self.choose_tasks(instructions, tasks)
        before = to_rgb(image)
        chosen = [choice.task for choice in choices]
        options = SamplingOptions(report=report)
        results = multi_turn.edit_turns(self.sampler, from_uint8(before), instructions, chosen, settings, options)
        turns: list[Turn] = []
        before = before.copy() if isinstance(image, np.ndarray) else before  # the caller may change its array later
        for instruction, choice, edited in zip(instructions, choices, results, strict=True):
            after = to_uint8(edited.images)[0]
            turns.append(Turn(instruction, choice, after, before, changed_area.measure(before, after, *edited.shifts_px)))
            before = after
        return turns

    def choose_tasks(self, instructions: Sequence[str], tasks: Sequence[str | None] | None = None) -> list[TaskChoice]:
        """The task of each instruction: the given one, or the task predictor's choice.

        An ambiguous instruction gets its more probable task; `second` is the other. Raises RefusedInstructionError for a text
        without a given task that is not an edit instruction, EditError for an unknown task, lists of unequal length and a missing
        task predictor. Warns (TruncatedInstructionWarning) if an instruction exceeds the text encoder's token limit.
        """
        texts = check_instructions(instructions)
        task_or_none = check_tasks(tasks, len(texts))
        choices = [self._choose_task(text, task) for text, task in zip(texts, task_or_none, strict=True)]
        for text in filter(self.sampler.is_truncated, texts):
            n_tokens = self.sampler.max_tokens
            message = f"the instruction {describe(text)} is truncated to the text encoder's {n_tokens} tokens; shorten it"
            warnings.warn(message, TruncatedInstructionWarning, stacklevel=2)
        return choices

    def _choose_task(self, instruction: str, task: str | None) -> TaskChoice:
        if task is not None:
            if not isinstance(task, str) or task not in self.tasks:
                raise EditError(f"want one of the tasks {', '.join(self.tasks)}; got {describe(task)}")
            return TaskChoice(task, None)
        if self.predictor is None:
            raise EditError("want a task predictor (the folder `router`) to choose the task, got none; name the task")
        (prediction,) = self.predictor.predict([instruction], self.tasks)
        if prediction.refused:
            raise RefusedInstructionError(prediction.explain_refusal(instruction))
        return TaskChoice(*prediction.readings[0], *(prediction.readings[1] if prediction.ambiguous else ()))

    def _edit_by_size(
        self, pixels: list[Pixels], instructions: Sequence[str], tasks: list[str], settings: EditSettings
    ) -> list[Pixels]:
        """Edit images of equal size together; the noise of an image depends on its position in the list.

        At most `MAX_PIXELS` pixels (at least one image) are float32 at the images' size at once, and those of
        `EditSampler.max_pixels_per_batch` enter the network.
        """
        from emuedit.editor.any_size import edit_any_size
        from emuedit.models.image_tensors import from_uint8, to_uint8

        outputs: dict[int, Pixels] = {}
        for rows in _batches_by_size(pixels):
            edited = edit_any_size(
                self.sampler,
                from_uint8(np.stack([pixels[row] for row in rows])),
                [instructions[row] for row in rows],
                [tasks[row] for row in rows],
                settings,
                [settings.seed + row for row in rows],
            )
            outputs |= dict(zip(rows, to_uint8(edited.images), strict=True))
        return [outputs[row] for row in range(len(pixels))]


def _batches_by_size(pixels: Sequence[Pixels]) -> Iterator[list[int]]:
    """Indices of images of equal size, for at most `MAX_PIXELS` pixels (at least one image) at once."""
    for height, width, _ in sorted({picture.shape for picture in pixels}):
        rows = [row for row, picture in enumerate(pixels) if picture.shape[:2] == (height, width)]
        at_once = max(1, MAX_PIXELS // (height * width))
        for start in range(0, len(rows), at_once):
            yield rows[start : start + at_once]
