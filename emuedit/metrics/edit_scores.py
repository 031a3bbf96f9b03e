"""Scores of one system on the edits of one task: success by the benchmark's judge, and the metrics of Emu Edit."""

from __future__ import annotations

from emuedit.data.png import encode_png
from emuedit.data.records import EvalRecord
from emuedit.metrics.baselines import System
from emuedit.metrics.benchmark import Benchmark
from emuedit.models import edit_similarity, image_tensors
from emuedit.models.clip import ClipScorer
from emuedit.models.dino import DinoScorer
from emuedit.runtime import seed_for

METRICS = {"clip_dir": "clip_direction", "clip_im": "clip_image", "clip_out": "clip_target", "l1": "l1", "dino": "dino"}
"""Emu Edit's metric (arXiv 2311.10089) -> column of `edit_similarity.measure_edits`. Outputs are compared with the input."""


def evaluate_system(
    name: str, system: System, edits: Benchmark, scorers: tuple[ClipScorer, DinoScorer], seed: int
) -> list[EvalRecord]:
    """One record per edit: the system's output, the judge's verdict and the metrics.

    An edit's noise depends on its task, its position and `seed`, and is the same for all systems.
    """
    seeds = [seed_for("evaluation", edits.task, i, seed) for i in range(len(edits.instructions))]
    outputs, tasks = system(edits, seeds)
    verdict = edits.judge(outputs)
    before, after = image_tensors.from_uint8(edits.before), image_tensors.from_uint8(outputs)
    scores = edit_similarity.measure_edits(*scorers, before, after, edits.input_captions, edits.output_captions)
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
            exact=encode_png(edits.exact[i]),
            success=bool(verdict.success[i]),
            reason=verdict.reason[i],
            scores={metric: scores[column][i] for metric, column in METRICS.items()},
        )
        for i in range(len(seeds))
    ]
