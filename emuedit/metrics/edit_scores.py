"""Scores of one system on the edits of one task: success by the benchmark's judge, and the metrics of Emu Edit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from emuedit.data.png import encode_png
from emuedit.data.records import EvalRecord, finite_or_none
from emuedit.metrics.benchmark import Benchmark
from emuedit.metrics.systems import System
from emuedit.models import edit_similarity, image_tensors
from emuedit.models.clip import ClipScorer
from emuedit.models.dino import DinoScorer
from emuedit.predictor.task_predictor import NO_EDIT
from emuedit.runtime import seed_for

METRICS = {"clip_dir": "clip_direction", "clip_im": "clip_image", "clip_out": "clip_target", "l1": "l1", "dino": "dino"}
"""Emu Edit's metric (arXiv 2311.10089) -> column of `measure_edits`. Outputs are compared with the input."""
EDITS_AT_ONCE = 64
"""Edits in memory: those made, judged and stored together. A multiple of the batch sizes of images of 512 px, so that the batches
are those of all edits together: 8 (`sampling.MAX_PIXELS_PER_BATCH`), 32 for the judge and the metrics. Ours."""
MAX_AT_ONCE = 32
"""Edits measured in one pass of CLIP and DINO, twice as many images: benchmarks may have hundreds per task. Ours."""
REFUSAL = "the task predictor refuses it"
"""Reason of an edit for which a system returns the task `NO_EDIT`; it is never a success, whatever the judge says."""


def split_edits(n_edits: int) -> list[range]:
    """The positions of all edits of a task, split into parts of at most EDITS_AT_ONCE."""
    return [range(start, min(start + EDITS_AT_ONCE, n_edits)) for start in range(0, n_edits, EDITS_AT_ONCE)]


def join_parts(parts: Iterable[Sequence[EvalRecord]]) -> list[EvalRecord]:
    """The records of all parts of a task, as if all edits had been made at once.

    They have the reference results only if all of them are known, see `Benchmark.exact`.
    """
    records = [record for part in parts for record in part]
    if any(record.exact is None for record in records):
        return [replace(record, exact=None) for record in records]
    return records


def evaluate_system(
    name: str,
    system: System,
    edits: Benchmark,
    scorers: tuple[ClipScorer, DinoScorer] | None,
    seed: int,
    at_once: int | None = None,
    start: int = 0,
) -> list[EvalRecord]:
    """One record per edit: the system's output, the judge's verdict and, with `scorers`, the metrics.

    The noise of an edit depends on its task, position and `seed`, and is equal for all systems. `start`: position of the first
    edit. Metrics are computed for at most `at_once` edits at a time (None: MAX_AT_ONCE). A refused instruction (task `NO_EDIT`)
    is a failure with the reason `REFUSAL`.
    """
    seeds = [seed_for("evaluation", edits.task, start + i, seed) for i in range(len(edits.instructions))]
    outputs, tasks = system(edits, seeds)
    verdict, exact = edits.judge(outputs), edits.exact
    scores: dict[str, edit_similarity.Column] = {column: [None] * len(seeds) for column in METRICS.values()}
    if scorers is not None:
        scores = {column: [] for column in METRICS.values()}
        size = at_once or MAX_AT_ONCE
        for first in range(0, len(seeds), size):
            rows = slice(first, first + size)
            before, after = image_tensors.from_uint8(edits.before[rows]), image_tensors.from_uint8(outputs[rows])
            measured = measure_edits(*scorers, before, after, edits.input_captions[rows], edits.output_captions[rows])
            for column, values in scores.items():
                values.extend(measured[column])
    return [
        EvalRecord(
            system=name,
            task=edits.task,
            instruction=edits.instructions[i],
            source_caption=edits.input_captions[i],
            target_caption=edits.output_captions[i],
            given_task=tasks[i],
            seed=seeds[i],
            source=encode_png(edits.before[i]),
            output=encode_png(outputs[i]),
            exact=None if exact is None else encode_png(exact[i]),
            success=bool(verdict.success[i]) and tasks[i] != NO_EDIT,
            reason=verdict.reason[i] if tasks[i] != NO_EDIT else REFUSAL,
            scores={metric: finite_or_none(scores[column][i]) for metric, column in METRICS.items()},
        )
        for i in range(len(seeds))
    ]


def measure_edits(
    clip: ClipScorer,
    dino: DinoScorer,
    before: Tensor,
    after: Tensor,
    source_captions: Sequence[str],
    target_captions: Sequence[str],
) -> dict[str, edit_similarity.Column]:
    """Measure the five metrics of Emu Edit (arXiv 2311.10089) and clip_source, for images [N, 3, H, W] in [-1, 1].

    The columns are those of `edit_similarity.similarity_columns`, and l1: the mean absolute difference of the two images in
    [0, 1]. As in the paper, an edited image is compared with its input, not with a reference: an editor that changes nothing
    gets CLIPim 1, DINO 1, L1 0 and no CLIPdir. Raises ValueError for images of different shapes.
    """
    if before.shape != after.shape:
        raise ValueError(f"want images of equal shape before and after, got {tuple(before.shape)} and {tuple(after.shape)}")
    n = len(before)
    images, captions = torch.cat([before, after]), [*source_captions, *target_captions]
    clip_images, clip_texts = clip.embed_images(images), clip.embed_texts(captions)
    dino_images = dino.embed_images(images)
    columns = edit_similarity.similarity_columns(
        (clip_images[:n], clip_images[n:]), (clip_texts[:n], clip_texts[n:]), (dino_images[:n], dino_images[n:])
    )
    return columns | {"l1": edit_similarity.to_column((before - after).abs().mean((1, 2, 3)) / 2)}
