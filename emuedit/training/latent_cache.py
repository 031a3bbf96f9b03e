"""From kept pairs to batches: every latent and every distinct instruction is encoded once, kept on disk, and memory-mapped.

Shapes: N pairs of a shard, C latent channels, h and w latent sizes, L tokens of width D. A shard of pairs becomes `NNNNN.npy`,
float16 [N, 2, 2, C, h, w] (plain and mirrored; source and target), and `NNNNN.json`, its instructions and tasks. The order of the
batches follows from (seed, step) alone.
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

from emuedit.data.png import decode_png
from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import read_shard
from emuedit.models import image_tensors
from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.progress import Progress
from emuedit.runtime import rng, seed_for
from emuedit.tasks import TASKS, get_task
from emuedit.training.batch import Batch

PICTURES_PER_BATCH = 64
SIDED = re.compile(r"\b(left|right|letters?|words?|text|write|says?|reads?|sign|clockwise)\b", re.IGNORECASE)
"""An instruction with one of these words means another thing in a mirrored picture."""


class LatentCacheError(ValueError):
    """Raised for pairs that cannot be trained on."""


@dataclass(frozen=True)
class PairRows:
    """What is known of M pairs, one array per column."""

    shard: NDArray[np.int64]
    position: NDArray[np.int64]  # in the shard
    task: NDArray[np.int64]  # row of the task embedding
    text: NDArray[np.int64]  # row of the text cache
    may_flip: NDArray[np.bool_]
    pair_ids: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.shard)

    def where(self, selected: NDArray[np.bool_]) -> PairRows:
        """The rows that are selected."""
        return PairRows(*(getattr(self, name)[selected] for name in self.__dataclass_fields__))


class LatentCache:
    """Encoded pairs: the rows `train` and `held_out`, and batches of them."""

    def __init__(self, folder: Path, held_out_share: float) -> None:
        notes = [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9]*.json"))]
        self._latents = [np.load(file, mmap_mode="r") for file in sorted(folder.glob("[0-9]*.npy"))]
        if len(sizes := {array.shape[3:] for array in self._latents if len(array)}) > 1:
            raise LatentCacheError(
                f"want latents of one size, got [C, h, w] {sorted(sizes)}; make or import pictures of one size"
            )
        self._texts: list[str] = json.loads((folder / "texts.json").read_text())
        self._hidden = np.load(folder / "hidden.npy", mmap_mode="r")  # [n + 1, L, D], the last is the null text
        pooled = folder / "pooled.npy"
        self._pooled = np.load(pooled, mmap_mode="r") if pooled.exists() else None
        text_row = {text: i for i, text in enumerate(self._texts)}
        task_row = {task.name: task.index for task in TASKS}
        flat = [(shard, position, note) for shard, rows in enumerate(notes) for position, note in enumerate(rows)]
        rows = PairRows(
            shard=np.array([shard for shard, _, _ in flat], np.int64),
            position=np.array([position for _, position, _ in flat], np.int64),
            task=np.array([task_row[note["task"]] for _, _, note in flat], np.int64),
            text=np.array([text_row[note["instruction"]] for _, _, note in flat], np.int64),
            may_flip=np.array([may_flip(note["task"], note["instruction"]) for _, _, note in flat], np.bool_),
            pair_ids=np.array([note["id"] for _, _, note in flat], np.str_),
        )
        held_out = np.array([is_held_out(note["caption_id"], held_out_share) for _, _, note in flat], np.bool_)
        self.train, self.held_out = rows.where(~held_out), rows.where(held_out)
        if not len(self.train):
            raise LatentCacheError(
                f"want kept pairs to train on, got {len(rows)}, all of them held out; loosen the filters or make more pairs"
            )
        self._by_task = np.argsort(self.train.task, kind="stable")
        self._per_task = np.bincount(self.train.task, minlength=len(TASKS))

    def choose(self, size: int, task_balance: float, seed: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(positions in `train` [B], whether to mirror [B]) of one step.

        Tasks are drawn in proportion to (pairs of the task)^task_balance, stratified over the batch; then pairs of the task,
        uniformly.
        """
        random = rng("editor", "batch", seed, step)
        counts = self._per_task
        share = np.where(counts > 0, counts.astype(float) ** task_balance, 0.0).cumsum()
        strata = (np.arange(size) + random.random(size)) / size
        tasks = np.searchsorted(share, strata * share[-1], side="right")
        first = np.concatenate([[0], counts.cumsum()])[tasks]
        positions = self._by_task[first + (random.random(size) * counts[tasks]).astype(np.int64)]
        return positions, random.random(size) < 0.5

    def batch(self, rows: PairRows, positions: NDArray[np.int64], flip: NDArray[np.bool_]) -> Batch:
        """The pairs at these positions of `rows`, mirrored where asked and allowed; float32 on the CPU."""
        mirrored = (flip & rows.may_flip[positions]).astype(np.int64)
        pairs = np.stack([self._latents[rows.shard[i]][rows.position[i], m] for i, m in zip(positions, mirrored, strict=True)])
        latents = torch.from_numpy(pairs.astype(np.float32))  # [B, 2, C, h, w]
        texts = rows.text[positions]
        return Batch(
            source=latents[:, 0].contiguous(),
            target=latents[:, 1].contiguous(),
            text=self._text(texts),
            null=self._text(np.array([len(self._hidden) - 1])),
            tasks=torch.from_numpy(rows.task[positions]),
            ids=tuple(rows.pair_ids[positions].tolist()),
            instructions=tuple(self._texts[i] for i in texts),
        )

    def _text(self, rows: NDArray[np.int64]) -> TextCondition:
        hidden = torch.from_numpy(self._hidden[rows].astype(np.float32))
        return TextCondition(hidden, None if self._pooled is None else torch.from_numpy(self._pooled[rows].astype(np.float32)))


def is_held_out(caption_id: str, share: float) -> bool:
    """Whether pairs that descend from this caption are kept from training: a share of all captions, the same on every run."""
    return seed_for("editor", "held out", caption_id) < share * 2**63


def may_flip(task: str, instruction: str) -> bool:
    """Whether picture and instruction still agree when the pictures are mirrored."""
    return get_task(task).mirrorable and SIDED.search(instruction) is None


def build(pairs: Sequence[Path], dataset: Path, base_model: TextToImageModel, folder: Path) -> None:
    """Encode the kept pairs of folders of pairs, shard by shard; shards that exist in `folder` are finished.

    Raises LatentCacheError for pictures of different sizes.
    """
    task_of = {verdict.pair_id: verdict.task for verdict in read_folder(dataset, Verdict) if verdict.kept}
    folder.mkdir(parents=True, exist_ok=True)
    shards = [source / name for source in pairs for name in sorted(read_summary(source).shards) if name.startswith("shard-")]
    done = sum((folder / f"{number:05d}.json").exists() for number in range(len(shards)))
    size: tuple[int, ...] | None = None
    with Progress("train: encode pairs", len(shards), "shard", done) as progress:
        for number, shard in enumerate(shards):
            note, array = folder / f"{number:05d}.json", folder / f"{number:05d}.npy"
            if note.exists():
                continue
            kept = [pair for pair in read_shard(shard, Pair) if pair.id in task_of]
            pictures = [np.stack([decode_png(pair.source), decode_png(pair.target)]) for pair in kept]
            for pair, picture in zip(kept, pictures, strict=True):
                size = size or picture.shape
                if picture.shape != size:
                    raise LatentCacheError(
                        f"want pictures of one size {size[1:3]}, got {picture.shape[1:3]} in pair {pair.id}; make them one size"
                    )
            _save(array, _encode_pairs(pictures, base_model))
            rows = [
                {"id": p.id, "caption_id": p.parent_ids[1], "task": task_of[p.id], "instruction": p.instruction} for p in kept
            ]  # parents: an instruction, then its caption
            _write(note, json.dumps(rows))
            progress.advance()
    if not (folder / "texts.json").exists():
        _encode_texts(base_model, folder)


def _encode_texts(base_model: TextToImageModel, folder: Path) -> None:
    """Encode every distinct instruction once, and the null text behind them."""
    notes = [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9]*.json"))]
    texts = sorted({note["instruction"] for rows in notes for note in rows})
    starts = range(0, len(texts), PICTURES_PER_BATCH)
    parts = [base_model.encode_text(texts[i : i + PICTURES_PER_BATCH]) for i in starts]
    text = TextCondition.cat(*parts, base_model.null_text(1))
    _save(folder / "hidden.npy", text.hidden.cpu().numpy().astype(np.float16))
    if text.pooled is not None:
        _save(folder / "pooled.npy", text.pooled.cpu().numpy().astype(np.float16))
    _write(folder / "texts.json", json.dumps(texts))


def _encode_pairs(pictures: Sequence[NDArray[np.uint8]], base_model: TextToImageModel) -> NDArray[np.float16]:
    """Source and target, plain and mirrored: N arrays uint8 [2, H, W, 3] -> float16 [N, 2, 2, C, h, w]."""
    if not pictures:
        return np.zeros((0, 2, 2, base_model.channels, 1, 1), np.float16)
    parts = []
    pairs_per_batch = PICTURES_PER_BATCH // 4
    for start in range(0, len(pictures), pairs_per_batch):
        plain = np.stack(pictures[start : start + pairs_per_batch])  # [n, 2, H, W, 3]
        both = np.stack([plain, plain[:, :, :, ::-1]], 1)  # [n, 2, 2, H, W, 3]
        images = image_tensors.from_uint8(both.reshape(-1, *both.shape[3:]))
        z = base_model.encode(images.to(base_model.device, memory_format=torch.channels_last)).cpu().numpy()
        parts.append(z.astype(np.float16).reshape(*both.shape[:3], *z.shape[1:]))
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
