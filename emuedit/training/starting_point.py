"""The starting point of a training: the base model, or an editor to continue, with a sample of its training pairs.

An editor's folder has `replay/`, a sample of its training pairs. Mixed with the new ones, they prevent forgetting (experience
replay, Rolnick et al., arXiv 1811.11682). `ancestors` in its `summary.json` are the editors from which it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emuedit import config
from emuedit.data.dependencies import SUMMARY_FILE
from emuedit.data.publish import read_summary
from emuedit.editor import checkpoint, package_folder
from emuedit.editor.checkpoint import FrozenParts
from emuedit.editor.unet import EditorUNet, has_change_mask
from emuedit.models import text_to_image
from emuedit.models.text_to_image import TextToImageModel
from emuedit.runtime import seed_for
from emuedit.tracking import registry

if TYPE_CHECKING:
    from emuedit.editor.task_embedding import TaskEmbedding

BASE_MODEL, BASE_EDITOR, CHAMPION = "base_model", "base_editor", "champion"
REPLAY = "replay"
"""Folder in an editor's folder (`replay.write`)."""


class StartError(ValueError):
    """Raised for a start that does not exist or conflicts with the settings."""


@dataclass(frozen=True)
class StartingPoint:
    """What a training starts from."""

    reference: str
    """Its name: base_model, base_editor, a folder, a hub id or a registered version."""
    folder: str
    """A base model's pipeline (folder or hub id), or an editor's folder."""
    is_editor: bool = False
    ancestors: tuple[dict[str, Any], ...] = ()
    """For an editor: its ancestors, oldest first, and itself."""

    @property
    def replay(self) -> Path | None:
        """The replay sample, if there is one."""
        folder = Path(self.folder) / REPLAY
        return folder if self.is_editor and folder.is_dir() else None

    @property
    def trained_tasks(self) -> tuple[str, ...]:
        """The tasks on which an editor was trained, in the order of its rows; none for the base model."""
        from emuedit.editor.task_embedding import TaskEmbedding

        if not self.is_editor:
            return ()
        table = TaskEmbedding.load_config(Path(self.folder) / "task_embedding")
        names: Sequence[str] = table["names"]
        return tuple(names[: table["n_trained"]])

    def editor(self, tasks: Sequence[str], d_v: int, change_mask: bool, seed: int) -> tuple[EditorUNet, TextToImageModel]:
        """(network to train, model with the other parts), on the CPU.

        tasks: the tasks with pairs. An editor's trained tasks come first, with their rows; other tasks get new rows. Rows added
        by inversion are dropped, since they work only with the old weights. d_v is used for a start from the base model. Raises
        StartError if `change_mask` differs from the editor's.
        """
        with torch.random.fork_rng([]):  # drawn on the CPU
            torch.manual_seed(seed_for("editor", "start", seed))
            if not self.is_editor:
                base_model = text_to_image.load(self.folder, "cpu")
                return checkpoint.from_base_model(base_model, d_v, tasks, change_mask), base_model
            net, parts, _ = checkpoint.load(self.folder, "cpu", torch.float32)
            has_mask = has_change_mask(net.unet, parts.channels)
            if has_mask != change_mask:
                raise StartError(
                    f"want train.change_mask {str(has_mask).lower()}, as the editor {self.reference} was trained, got "
                    f"{str(change_mask).lower()}; change it, or start from {BASE_MODEL}"
                )
            net.table = _extend(net.table, tasks)
            return net, EditorParts(parts.pipeline)


class Encoders(TextToImageModel):
    """The VAE and text encoders of a base model or an editor; the network, the largest part, stays on the CPU."""

    @classmethod
    def on(cls, device: str, pipeline: Any) -> Encoders:
        """Those of a pipeline, moved to a device."""
        encoders = cls(pipeline)
        for part in (encoders.vae, *encoders.text_encoders):
            part.to(device)
        return encoders

    @property
    def device(self) -> torch.device:
        """Device of the VAE and the text encoders."""
        device: torch.device = self.vae.device
        return device

    def _check(self) -> None:
        """The network may be a base model's or an editor's."""


class EditorParts(FrozenParts):
    """The parts of an editor in training; they run on the network's device."""

    @property
    def device(self) -> torch.device:
        """The network's device."""
        device: torch.device = self.unet.device
        return device


def resolve(start: str, world: config.World, root: Path) -> StartingPoint:
    """Resolve `train.start`.

    start: `base_model` (fine-tune the text-to-image model), `base_editor` (the world's), `champion` (of the
    registry; without one, the base editor, or the base model if the world has none), a folder, `models:/...`, `runs:/...` or a
    hub id. Under `emuedit rebuild`, a registered start is the model that the rebuilt version continued.
    Raises StartError for a world without a base editor and PackageError for a source without an editor.
    """
    base_start = StartingPoint(BASE_MODEL, config.resolve_path(world.base_model, root))
    if start == BASE_MODEL:
        return base_start
    if start == BASE_EDITOR:
        if world.base_editor is None:
            raise StartError(f"want a base editor (world.base_editor) to start from, got none; set it, or start: {BASE_MODEL}")
        return _of_editor(config.resolve_path(world.base_editor, root), BASE_EDITOR)
    if start == CHAMPION or start.startswith(("models:/", "runs:/")):
        parent = package_folder.find_rebuilt_parent()
        if parent is not None:
            return _of_editor(*parent)
    if start == CHAMPION:
        champion = package_folder.find_champion()
        if champion is not None:
            return _of_editor(*champion)
        first = base_start if world.base_editor is None else resolve(BASE_EDITOR, world, root)
        print(f"train: no champion is registered yet; starting from {first.reference}", flush=True)
        return first
    if start.startswith("models:/"):
        start = registry.numbered_uri(start)  # recorded, since an alias may name another version later
    path = root / start
    return _of_editor(path if path.exists() else start, start)


def _of_editor(source: str | Path, reference: str) -> StartingPoint:
    """The editor at a source (see `package_folder`), under the name by which it is recorded."""
    from emuedit.editor.task_embedding import TaskEmbedding

    folder = package_folder.editor_folder(package_folder.find_package(package_folder.resolve_source(source)[0]))
    ancestors: list[dict[str, Any]] = []
    table = TaskEmbedding.load_config(folder / "task_embedding")
    this: dict[str, Any] = {"reference": reference, "weights": table["weights"]}
    if (folder / SUMMARY_FILE).exists():
        summary = read_summary(folder)
        ancestors = list(summary.params.get("ancestors", ()))
        this |= {key: summary.counts[key] for key in ("steps", "pairs") if key in summary.counts}
    return StartingPoint(reference, str(folder), True, (*ancestors, this))


def _extend(table: TaskEmbedding, tasks: Sequence[str]) -> TaskEmbedding:
    """The trained rows, then new random rows for `tasks` without one."""
    from emuedit.editor.task_embedding import TaskEmbedding

    trained = table.names[: table.n_trained]
    names = (*trained, *(task for task in tasks if task not in trained))
    extended = TaskEmbedding(table.d_v, table.to_token.out_features, names)
    with torch.no_grad():
        extended.v[: len(trained)] = table.v[: len(trained)]
    extended.to_token.load_state_dict(table.to_token.state_dict())
    return extended
