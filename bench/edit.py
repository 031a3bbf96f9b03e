"""How do speed and quality of edits compare with diffusers' published pipeline?

`uv run python bench/edit.py [--quick]` writes `bench/results/edit.json`; its last line is the same JSON. Both sides run the
same network, the toy world's base editor (or `--editor FOLDER`), in the same number format, from the same noise.

- `published`: `StableDiffusionInstructPix2PixPipeline` of diffusers, three evaluations per step, twelve steps;
- `equal`: our sampling with the same settings, without what the pipeline lacks (threshold, change mask, rescaled guidance);
- `default`: the evaluation settings of `params.yaml`: four steps, no guidance;
- `published_few`: the published pipeline with as many steps and no guidance.

Sides alternate, round by round, with 1 and with 8 images; results are medians. `max_abs_difference` is between `published` and
`equal`, for values in [0, 1]. `success` is by the toy world's judge, with the true task given. `bench/seams.py` measures seams.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from harness import command, published_editor
from torch import Tensor

from emuedit import config
from emuedit.editor import sampling
from emuedit.editor.sampling import EditSampler
from emuedit.editor.settings import EditSettings
from emuedit.models.image_tensors import from_uint8, to_uint8
from emuedit.progress import Progress
from emuedit.runtime import Runtime
from toyworld.edits.exact_edits import build_edits

TASKS = ("local", "texture", "background", "remove", "add", "detect", "segment", "sketch")
EDITS, QUICK_EDITS = 24, 2
"""Edits per task, for success."""
ROUNDS, QUICK_ROUNDS = 7, 2
PLAIN = {"change_threshold": 0.0, "preserve": 0.0, "composite": 0, "guidance_rescale": 0.0, "steps": 12}
"""Settings of `equal`: features that the published pipeline lacks are off, and its number of steps."""
GUIDED = {"image_guidance_scale": 1.6, "guidance_scale": 2.0}
"""Guidance of `published`; `published_few` has none."""

Edit = Callable[[Tensor, list[str], str, list[int]], Tensor]
"""Images [B, 3, H, W] in [-1, 1], instructions, task, seeds -> edited images."""


def make_sides(sampler: EditSampler, settings: EditSettings) -> dict[str, Edit]:
    """The four sides by name."""
    pipeline = published_editor.build_pipeline(sampler)
    plain = settings.with_changes(PLAIN | GUIDED)
    few_steps = settings.with_changes(PLAIN | {"steps": settings.steps})

    def published(chosen: EditSettings) -> Edit:
        return lambda images, texts, task, seeds: published_editor.edit(pipeline, sampler, images, texts, task, chosen, seeds)

    def ours(chosen: EditSettings) -> Edit:
        return lambda images, texts, task, seeds: sampler.sample(images, texts, [task] * len(texts), chosen, seeds).images

    return {
        "published": published(plain),
        "published_few": published(few_steps),
        "equal": ours(plain),
        "default": ours(settings),
    }


def time_sides(sides: dict[str, Edit], images: Tensor, texts: list[str], task: str, rounds: int) -> dict[str, float]:
    """Edits per second of each side: the median over rounds, after a warm-up round."""
    seeds = list(range(len(texts)))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, edit in sides.items():
            start = time.perf_counter()
            edit(images, texts, task, seeds)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(texts) / median(values[1:]) for name, values in seconds.items()}


def measure_success(sides: dict[str, Edit], n: int) -> dict[str, dict[str, float]]:
    """Edit success of each side per task, and their mean."""
    success: dict[str, dict[str, float]] = {name: {} for name in sides}
    with Progress("edits", len(TASKS) * len(sides) * n, "edit") as progress:
        for task in TASKS:
            edits = build_edits(task, "held_out", 3000, n)
            for name, edit in sides.items():
                output = edit(from_uint8(edits.before), edits.instructions, task, list(range(n)))
                success[name][task] = round(float(edits.judge(to_uint8(output)).success.mean()), 4)
                progress.advance(n)
    return {name: {"mean": round(sum(tasks.values()) / len(tasks), 4)} | tasks for name, tasks in success.items()}


def main() -> None:
    """See above."""
    parser = command.argument_parser(__doc__, f"{QUICK_EDITS} edits per task, {QUICK_ROUNDS} rounds")
    command.add_editor(parser)
    args = parser.parse_args()
    sampler = sampling.load(args.editor, Runtime.choose("auto", "float32"))
    params = config.read_yaml(command.ROOT / config.PARAMS_FILE)
    settings = EditSettings().with_changes(params["evaluation"]["settings"])
    sides = make_sides(sampler, settings)
    edits = build_edits("background", "held_out", 0, 8)
    images = from_uint8(edits.before)
    seeds = list(range(8))
    published, equal = (sides[name](images, edits.instructions, edits.task, seeds) for name in ("published", "equal"))
    rounds = QUICK_ROUNDS if args.quick else ROUNDS
    speeds = {n: time_sides(sides, images[:n], edits.instructions[:n], edits.task, rounds) for n in (1, 8)}
    success = measure_success(sides, QUICK_EDITS if args.quick else EDITS)
    ratios = {n: {name: round(speed / values["published"], 3) for name, speed in values.items()} for n, values in speeds.items()}
    figures = {
        "edits_per_second_ratio": ratios[8]["default"],
        "edits_per_second_ratio_equal": ratios[8]["equal"],
        "max_abs_difference": float((published - equal).abs().max() / 2),
        "success_published": success["published"]["mean"],
        "success_default": success["default"]["mean"],
        "settings_default": settings.model_dump(),
        "edits_per_second": {f"{n} pictures": {name: round(x, 3) for name, x in v.items()} for n, v in speeds.items()},
        "ratio_to_published": {f"{n} pictures": values for n, values in ratios.items()},
        "success": success,
        "threads": torch.get_num_threads(),
    }
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
