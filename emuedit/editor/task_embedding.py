"""The task embedding: one learned row v_i per task, and an extra cross-attention token computed from it.

Shapes: B samples, n rows, D_v the width of a row, D the width of the text tokens. Emu Edit (arXiv 2311.10089) adds v_i to the
timestep embedding and passes it to cross-attention. The use of one token, and D_v, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from emuedit.name_hints import closest_match
from emuedit.tasks import ALL_TASKS, UnknownTaskError

if TYPE_CHECKING:
    from emuedit.editor.task_adapter import TaskAdapter


class TaskEmbedding(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is Any
    """`names[i]` is the task of row i: trained tasks, then tasks added by inversion. A part of a diffusers pipeline.

    d_v: the width of a row.
    d_text: the width of a text token.
    n_trained: number of rows trained with the network; None: all.
    weights: the `fingerprint`, under the name that stored configs use; empty before it is saved.
    """

    _keep_in_fp32_modules: ClassVar = ["v", "to_token"]  # small, and inversion trains them in this dtype

    def __init__(
        self, d_v: int, d_text: int, names: Sequence[str] = ALL_TASKS, n_trained: int | None = None, weights: str = ""
    ) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.empty(len(names), d_v))  # [n, D_v]
        nn.init.normal_(self.v)
        self.to_token = nn.Linear(d_v, d_text)
        n_trained = len(names) if n_trained is None else n_trained
        self.register_to_config(d_v=d_v, d_text=d_text, names=list(names), n_trained=n_trained, weights=weights)
        self.adapters: dict[str, TaskAdapter] = {}
        """Task -> adapter, for tasks learned with one; not saved."""
        self.change_thresholds: dict[str, float] = {}
        """Task -> change threshold, for learned tasks whose results keep a part of the image; not saved."""

    @property
    def d_v(self) -> int:
        """Width of a row."""
        return self.v.shape[1]

    @property
    def names(self) -> tuple[str, ...]:
        """The task of each row."""
        return tuple(self.config["names"])

    @property
    def n_trained(self) -> int:
        """Number of rows trained with the network; later rows were added."""
        return int(self.config["n_trained"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the network that the rows were trained with, 16 hex digits; empty before it is saved."""
        return str(self.config["weights"])

    def rows(self, tasks: Sequence[str]) -> Tensor:
        """Rows of the tasks, [B, D_v]. Raises UnknownTaskError, which lists the known names."""
        return self.v[[self.index(name) for name in tasks]]

    def index(self, task: str) -> int:
        """Row of a task. Raises UnknownTaskError, which lists the known names."""
        if task in self.names:
            return self.names.index(task)
        hint = closest_match(task, self.names)
        raise UnknownTaskError(f"want one of this editor's tasks ({', '.join(self.names)}), got {task!r}{hint}")

    def token(self, v: Tensor) -> Tensor:
        """The token appended to the instruction's tokens: [B, D_v] -> [B, 1, D]."""
        token: Tensor = self.to_token(v)[:, None]
        return token

    def add(self, name: str, v: Tensor) -> None:
        """Append a row. Raises ValueError for a name that exists and for a row of another width."""
        if name in self.names:
            raise ValueError(f"want a new name, got {name!r}, which exists; choose another or reload the editor")
        if v.shape != (self.d_v,) or not torch.isfinite(v).all():
            raise ValueError(f"want a finite task embedding [{self.d_v}], got {tuple(v.shape)}; learn it on this editor")
        row = v.detach().to(self.v)[None]
        self.v = nn.Parameter(torch.cat([self.v.detach(), row]), requires_grad=self.v.requires_grad)
        self.register_to_config(names=[*self.names, name])

    def remove(self, name: str) -> None:
        """Remove a row that was added by `add`, with the task's adapter and change threshold.

        Raises ValueError for a trained task, UnknownTaskError for an unknown one.
        """
        row = self.index(name)
        if row < self.n_trained:
            raise ValueError(f"want an added task, got {name!r}, which the editor was trained on")
        kept = [i for i in range(len(self.names)) if i != row]
        self.v = nn.Parameter(self.v.detach()[kept], requires_grad=self.v.requires_grad)
        self.register_to_config(names=[self.names[i] for i in kept])
        self.adapters.pop(name, None)
        self.change_thresholds.pop(name, None)

    def check_storable(self) -> None:
        """Raise ValueError for tasks with an adapter or a change threshold, which a pipeline folder cannot store."""
        if names := sorted({*self.adapters, *self.change_thresholds}):
            raise ValueError(
                f"want tasks without adapters and change thresholds in a pipeline folder, got {names}; remove them, and keep "
                "their packs next to it"
            )
