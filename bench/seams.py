"""How visible is the border of an edit, and how wide should it be?

`uv run python bench/seams.py [--quick]` writes `bench/results/seams.json`; its last line is the same JSON. The toy world's base
editor (or `--editor FOLDER`) makes edits with the settings of `params.yaml` and `border_px` 0; the borders of 0 to 3 px are then
composited as `border_px` does it.

For each width: `seam`, the mean increase in edge contrast, in [0, 1], at the edge of the changed region of local edits
(`compositing.seam`); `seam_by_depth`, the same 0 to 3 px inside it, over which a border spreads; `changed_share`, the share of
pixels that differ from the input; `success` by the toy world's judge, overall and per task. `seam_exact` and
`seam_exact_by_depth` are those of the renderer's results, whose objects have edges.
`shift_px`: median, 90th percentile and maximum of the shift of the edited images against their inputs, as it is reported with an
edit; the editor does not shift, so these are the errors of the estimate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from harness import command
from torch import Tensor

from emuedit import config
from emuedit.core import compositing
from emuedit.editor import sampling
from emuedit.editor.sampling_options import SamplingOptions
from emuedit.editor.settings import EditSettings
from emuedit.models.image_tensors import from_uint8, to_uint8
from emuedit.progress import Progress
from emuedit.runtime import Runtime
from toyworld.edits.exact_edits import build_edits

LOCAL = ("local", "texture", "remove", "add")
"""Tasks whose seams are measured."""
TASKS = (*LOCAL, "detect", "segment", "background")
BORDERS_PX = (0, 1, 2, 3)
EDITS, QUICK_EDITS = 24, 2
"""Edits per task."""


def seam_by_depth(before: Tensor, after: Tensor) -> list[float]:
    """`compositing.seam` 0 to 3 px inside the changed region; images [B, 3, H, W]."""
    return [compositing.seam(before, after, depth_px) for depth_px in range(4)]


def mean_of(seams: list[list[float]]) -> list[float]:
    """Mean over the tasks, by depth."""
    return [round(float(seam), 4) for seam in np.mean(seams, axis=0)]


def main() -> None:
    """See above."""
    parser = command.argument_parser(__doc__, f"{QUICK_EDITS} edits per task")
    command.add_editor(parser)
    args = parser.parse_args()
    sampler = sampling.load(args.editor, Runtime.choose("auto", "float32"))
    settings = EditSettings().with_changes(config.read_yaml(command.ROOT / config.PARAMS_FILE)["evaluation"]["settings"])
    n = QUICK_EDITS if args.quick else EDITS
    edits = {task: build_edits(task, "held_out", 3000, n) for task in TASKS}
    exact = mean_of([seam_by_depth(from_uint8(edits[task].before), from_uint8(edits[task].exact)) for task in LOCAL])
    outputs: dict[str, Tensor] = {}
    shifts_px: list[float | None] = []
    options = SamplingOptions(measure_shifts=True)
    with Progress("edits", len(TASKS) * n, "edit") as progress:
        for task in TASKS:
            arguments = (edits[task].instructions, [task] * n, settings.with_changes({"border_px": 0}), list(range(n)))
            edited = sampler.sample(from_uint8(edits[task].before), *arguments, options=options)
            outputs[task] = edited.images
            shifts_px += edited.shifts_px
            progress.advance(n)
    by_border: dict[str, dict[str, Any]] = {}
    for border_px in BORDERS_PX:
        seams, shares, success = [], [], {}
        for task, output in outputs.items():
            before = from_uint8(edits[task].before)
            weight = compositing.soft_border(compositing.changed_pixels(before, output), border_px)
            pixels = to_uint8(compositing.blend(before, output, weight))
            success[task] = round(float(edits[task].judge(pixels).success.mean()), 4)
            if task in LOCAL:
                after = from_uint8(pixels)
                seams.append(seam_by_depth(before, after))
                shares.append(float(compositing.changed_pixels(before, after).float().mean()))
        by_depth = mean_of(seams)
        by_border[f"{border_px} px"] = {
            "seam": by_depth[0],
            "seam_by_depth": by_depth,
            "changed_share": round(sum(shares) / len(shares), 4),
            "success": {"mean": round(sum(success.values()) / len(success), 4)} | success,
        }
    measured = [shift for shift in shifts_px if shift is not None]
    figures = {
        "default_px": settings.border_px,
        "seam_default": by_border[f"{settings.border_px} px"]["seam"],
        "seam_exact": exact[0],
        "seam_exact_by_depth": exact,
        "by_border": by_border,
        "shift_px": dict(
            zip(("median", "p90", "max"), (round(float(q), 3) for q in np.quantile(measured, (0.5, 0.9, 1))), strict=True)
        ),
        "shifts_measured": len(measured),
        "shifts_undefined": len(shifts_px) - len(measured),
    }
    command.write_result(__file__, figures, args)


if __name__ == "__main__":
    main()
