"""From kept pairs to batches: every latent and every distinct instruction is encoded once, kept on disk, read by memory map.

Shapes: N pairs of a shard, C latent channels, h and w latent sizes, L tokens of width D. A shard of pairs makes
`NNNNN.npy`, float16 [N, 2, 2, C, h, w] (plain and mirrored; source and target), and `NNNNN.json`, what was said of them.
The order of batches follows from (seed, step) alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from emuedit.data.png import decode_png
from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import read_shard
from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.runtime import rng, seed_for
from emuedit.tasks import TASKS
from emuedit.training.loss import Batch

ENCODED_AT_ONCE = 64
SIDED = re.compile(r"\b(left|right|letters?|words?|text|write|says?|reads?|sign|clockwise)\b", re.IGNORECASE)
"""An instruction with one of these words means another thing in a mirrored picture."""


class BatchesError(ValueError):
    """Raised for pairs that cannot be trained on."""


@dataclass(frozen=True)
class Rows:
    """What is known of M pairs, one array a column."""

    shard: NDArray[np.int64]
    at: NDArray[np.int64]  # position in the shard
    task: NDArray[np.int64]  # row of the task table
    text: NDArray[np.int64]  # row of the text cache
    may_flip: NDArray[np.bool_]
    pair_ids: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.shard)

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        return Rows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


class Cache:
    """Encoded pairs: `train` and `held_out` rows, and `batch` of any of them."""

    def __init__(self, folder: Path, held_out_share: float) -> None:
        notes = [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9]*.json"))]
        self._latents = [np.load(file, mmap_mode="r") for file in sorted(folder.glob("[0-9]*.npy"))]
        if len(sizes := {array.shape[3:] for array in self._latents if len(array)}) > 1:
            raise BatchesError(f"want latents of one size, got [C, h, w] {sorted(sizes)}; make or import pictures of one size")
        self._texts: list[str] = json.loads((folder / "texts.json").read_text())
        self._hidden = np.load(folder / "hidden.npy", mmap_mode="r")  # [n + 1, L, D], the last is the null text
        pooled = folder / "pooled.npy"
        self._pooled = np.load(pooled, mmap_mode="r") if pooled.exists() else None
        position = {text: i for i, text in enumerate(self._texts)}
        index = {task.name: task.index for task in TASKS}
        flat = [(shard, at, note) for shard, found in enumerate(notes) for at, note in enumerate(found)]
        rows = Rows(
            shard=np.array([shard for shard, _, _ in flat], np.int64),
            at=np.array([at for _, at, _ in flat], np.int64),
            task=np.array([index[note["task"]] for _, _, note in flat], np.int64),
            text=np.array([position[note["instruction"]] for _, _, note in flat], np.int64),
            may_flip=np.array([may_flip(note["task"], note["instruction"]) for _, _, note in flat], np.bool_),
            pair_ids=np.array([note["id"] for _, _, note in flat], np.str_),
        )
        held = np.array([held_out(note["caption_id"], held_out_share) for _, _, note in flat], np.bool_)
        self.train, self.held_out = rows.where(~held), rows.where(held)
        if not len(self.train):
            raise BatchesError(
                f"want kept pairs to train on, got {len(rows)}, all of them held out; loosen the gates or make more pairs"
            )

    def pick(self, size: int, balance: float, seed: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(positions in `train` [B], mirrored? [B]) of one step.

        Tasks are drawn in proportion to (pairs of the task)^balance, one draw in every stratum; then pairs of the task, evenly.
        """
        chance = rng("editor", "batch", seed, step)
        counts = np.bincount(self.train.task, minlength=len(TASKS))
        share = np.where(counts > 0, counts.astype(float) ** balance, 0.0).cumsum()
        strata = (np.arange(size) + chance.random(size)) / size
        tasks = np.searchsorted(share, strata * share[-1], side="right")
        order = np.argsort(self.train.task, kind="stable")
        first = np.concatenate([[0], counts.cumsum()])[tasks]
        picked = order[first + (chance.random(size) * counts[tasks]).astype(np.int64)]
        return picked, chance.random(size) < 0.5

    def batch(self, rows: Rows, picked: NDArray[np.int64], flip: NDArray[np.bool_]) -> Batch:
        """The pairs at these positions of `rows`, mirrored where asked and allowed; float32 on the CPU."""
        turned = (flip & rows.may_flip[picked]).astype(np.int64)
        pairs = np.stack([self._latents[rows.shard[i]][rows.at[i], f] for i, f in zip(picked, turned, strict=True)])
        both = torch.from_numpy(pairs.astype(np.float32))  # [B, 2, C, h, w]
        texts = rows.text[picked]
        return Batch(
            source=both[:, 0].contiguous(),
            target=both[:, 1].contiguous(),
            text=self._text(texts),
            null=self._text(np.array([len(self._hidden) - 1])),
            tasks=torch.from_numpy(rows.task[picked]),
            ids=tuple(rows.pair_ids[picked].tolist()),
            said=tuple(self._texts[i] for i in texts),
        )

    def _text(self, which: NDArray[np.int64]) -> TextCondition:
        hidden = torch.from_numpy(self._hidden[which].astype(np.float32))
        return TextCondition(hidden, None if self._pooled is None else torch.from_numpy(self._pooled[which].astype(np.float32)))


def held_out(caption_id: str, share: float) -> bool:
    """Whether what descends from this caption is kept from training: a share of all captions, the same on every run."""
    return seed_for("editor", "held out", caption_id) < share * 2**63


def may_flip(task: str, instruction: str) -> bool:
    """Whether picture and instruction still fit when the pictures are mirrored."""
    return task != "text" and SIDED.search(instruction) is None


def build(pairs: Sequence[Path], dataset: Path, base_model: TextToImageModel, folder: Path) -> None:
    """Encode what the verdicts keep of folders of pairs, shard by shard; shards found in `folder` are done.

    Pictures must share one size.
    """
    kept = {one.pair_id: one.task for one in read_folder(dataset, Verdict) if one.kept}
    folder.mkdir(parents=True, exist_ok=True)
    shards = [own / name for own in pairs for name in sorted(read_summary(own).shards) if name.startswith("shard-")]
    size: tuple[int, ...] | None = None
    for number, shard in enumerate(tqdm(shards, desc="latents", unit="shard")):
        note, array = folder / f"{number:05d}.json", folder / f"{number:05d}.npy"
        if note.exists():
            continue
        chosen = [pair for pair in read_shard(shard, Pair) if pair.id in kept]
        pictures = [np.stack([decode_png(pair.source), decode_png(pair.target)]) for pair in chosen]
        for pair, picture in zip(chosen, pictures, strict=True):
            size = size or picture.shape
            if picture.shape != size:
                raise BatchesError(
                    f"want pictures of one size {size[1:3]}, got {picture.shape[1:3]} in pair {pair.id}; make them one size"
                )
        _save(array, _encoded(pictures, base_model))
        said = [
            {"id": p.id, "caption_id": p.parent_ids[1], "task": kept[p.id], "instruction": p.instruction} for p in chosen
        ]  # parents: an instruction, then its caption
        _write(note, json.dumps(said))
    if not (folder / "texts.json").exists():
        notes = [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9]*.json"))]
        texts = sorted({note["instruction"] for found in notes for note in found})
        parts = [base_model.encode_text(texts[i : i + ENCODED_AT_ONCE]) for i in range(0, len(texts), ENCODED_AT_ONCE)]
        text = TextCondition.cat(*parts, base_model.null_text(1))
        _save(folder / "hidden.npy", text.hidden.cpu().numpy().astype(np.float16))
        if text.pooled is not None:
            _save(folder / "pooled.npy", text.pooled.cpu().numpy().astype(np.float16))
        _write(folder / "texts.json", json.dumps(texts))


def _encoded(pictures: Sequence[NDArray[np.uint8]], base_model: TextToImageModel) -> NDArray[np.float16]:
    """Source and target, plain and mirrored: N arrays uint8 [2, H, W, 3] -> float16 [N, 2, 2, C, h, w]."""
    if not pictures:
        return np.zeros((0, 2, 2, base_model.channels, 1, 1), np.float16)
    parts = []
    for start in range(0, len(pictures), ENCODED_AT_ONCE // 4):
        plain = np.stack(pictures[start : start + ENCODED_AT_ONCE // 4])  # [n, 2, H, W, 3]
        both = np.stack([plain, plain[:, :, :, ::-1]], 1)  # [n, 2, 2, H, W, 3]
        images = image_tensors.from_uint8(both.reshape(-1, *both.shape[3:])).to(
            base_model.device, memory_format=torch.channels_last
        )
        z = base_model.encode(images).cpu().numpy().astype(np.float16)
        parts.append(z.reshape(*both.shape[:3], *z.shape[1:]))
    return np.concatenate(parts)


def _save(path: Path, array: NDArray[np.float16]) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb") as stream:
        np.save(stream, array)
    partial.replace(path)


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
