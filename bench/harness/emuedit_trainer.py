"""Run the stage `train` on the pairs of a workspace, and read its speed from its statistics.

    python -m harness.emuedit_trainer WORKSPACE OUT STEPS WARM_UP CHANGES

CHANGES are settings of the stage as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from harness.step_clock import peak_gpu_memory

LOG_EVERY_STEPS = 4


def main() -> None:
    """See above."""
    workspace, out, steps, warm_up, changes = sys.argv[1:]
    from emuedit import config
    from emuedit.data.publish import STATS_FILE, logs_folder
    from emuedit.stages import train
    from emuedit.tracking import read_stats
    from emuedit.training.batches import latent_files

    root, encoding_s = Path(workspace), 0.0
    params = config.load(train.TrainParams, "train", root / "params.yaml")
    rarely = {"eval_every_steps": 10**6, "save_every_s": 1e9}
    fixed = {"start": train.BASE_MODEL, "steps": int(steps), "preview": None, "log_every_steps": LOG_EVERY_STEPS} | rarely
    values = params.model_dump(mode="json") | fixed | json.loads(changes)
    params = train.TrainParams.model_validate_json(json.dumps(values))
    build = latent_files.build

    def timed_build(*args: Any, **options: Any) -> None:
        nonlocal encoding_s
        start = time.perf_counter()
        build(*args, **options)
        encoding_s = time.perf_counter() - start

    latent_files.build = timed_build  # type: ignore[assignment]
    train.run(params, root)
    stats = read_stats(logs_folder(root, "train") / STATS_FILE)
    lines = [line for line in stats if "samples_per_second" in line.get("metrics", {})]
    speeds = [line["metrics"]["samples_per_second"] for line in lines if line["step"] > int(warm_up)]
    figures = {"samples_per_second": median(speeds), "encoding_s": encoding_s} | peak_gpu_memory()
    Path(out).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
