"""The task embedding: one learned row v_i per task, and one more cross-attention token made from it.

Shapes: B samples, n rows, D_v the width of a row, D the width of the text tokens. Emu Edit (arXiv 2311.10089) adds v_i to the
timestep embedding and gives it to cross-attention. That it is one token, and D_v, are ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emuedit.name_hints import closest_match
from emuedit.tasks import TASKS, UnknownTaskError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TRAINED = tuple(task.name for task in TASKS)
"""Names of the first rows."""


class TaskEmbedding(nn.Module):
    """`names[i]` is the task of row i: the trained ones in their order, then those that inversion added."""

    def __init__(self, d_v: int, d_text: int, names: Sequence[str] = TRAINED) -> None:
        super().__init__()
        self.names = tuple(names)
        self.n_trained = len(self.names)
        """How many rows were trained with the network; those after them were added. An older editor may have fewer than TASKS."""
        self.v = nn.Parameter(torch.randn(len(self.names), d_v))  # [n, D_v]
        self.to_token = nn.Linear(d_v, d_text)

    @property
    def d_v(self) -> int:
        """Width of a row."""
        return self.v.shape[1]

    def rows(self, tasks: Sequence[str]) -> Tensor:
        """Names -> their rows, [B, D_v]. Raises UnknownTaskError, which lists the known names."""
        return self.v[[self.index(name) for name in tasks]]

    def index(self, task: str) -> int:
        """Row of a task. Raises UnknownTaskError, which lists the known names."""
        if task in self.names:
            return self.names.index(task)
        hint = closest_match(task, self.names)
        raise UnknownTaskError(f"want a task that this editor knows ({', '.join(self.names)}), got {task!r}{hint}")

    def token(self, v: Tensor) -> Tensor:
        """The token that follows those of the instruction: [B, D_v] -> [B, 1, D]."""
        token: Tensor = self.to_token(v)[:, None]
        return token

    def add(self, name: str, v: Tensor) -> None:
        """Append a row. Raises ValueError for a name that is taken and for a row of another width."""
        if name in self.names:
            raise ValueError(f"want a new name, got {name!r}, a task that exists; choose another or load the editor again")
        if v.shape != (self.d_v,) or not torch.isfinite(v).all():
            raise ValueError(f"want a finite task embedding [{self.d_v}], got {tuple(v.shape)}; learn it on this editor")
        row = v.detach().to(self.v)[None]
        self.v = nn.Parameter(torch.cat([self.v.detach(), row]), requires_grad=self.v.requires_grad)
        self.names = (*self.names, name)

    def save(self, folder: Path, weights: str, dtype: torch.dtype) -> None:
        """Write `config.json` and `model.safetensors`; `weights` is the fingerprint of the network that the rows belong to."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"names": self.names, "d_v": self.d_v, "d_text": self.to_token.out_features, "weights": weights}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        save_file({name: value.to(dtype).contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS_FILE)


def load(folder: Path) -> tuple[TaskEmbedding, str]:
    """(task embedding, fingerprint of the network it belongs to) from what `TaskEmbedding.save` wrote; rows in float32."""
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"want an editor's task embedding, got no {CONFIG_FILE} in {folder}; a base model is no editor")
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    table = TaskEmbedding(config["d_v"], config["d_text"], config["names"])
    table.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS_FILE).items()})
    return table, config["weights"]
