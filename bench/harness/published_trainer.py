"""Run diffusers' `train_instruct_pix2pix.py` unmodified on the pairs of a workspace, and time its steps.

    python -m harness.published_trainer SCRIPT WORKSPACE OUT DTYPE STEPS WARM_UP BATCH SIZE_PX

Three parts are replaced: `load_dataset` returns the workspace's pairs as a `datasets.Dataset`, the progress bar records the time
and ends the run after the last step, before the script saves its pipeline, and accelerate finds no tracker to log to.
"""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path
from typing import Any

from harness.step_clock import StepClock


class _LastStep(Exception):  # noqa: N818  not an error
    """Ends the script."""


def main() -> None:
    """See above."""
    script, workspace, out, dtype, steps, warm_up, batch, size_px = sys.argv[1:]
    import accelerate.tracking
    import datasets
    import tqdm.auto
    from PIL import Image

    from emuedit.data.publish import read_folder
    from emuedit.data.records import Pair

    pairs = list(read_folder(Path(workspace, "data", "pairs"), Pair))
    columns = {
        "input_image": [Image.open(io.BytesIO(pair.source)) for pair in pairs],
        "edited_image": [Image.open(io.BytesIO(pair.target)) for pair in pairs],
        "edit_prompt": [pair.instruction for pair in pairs],
    }
    dataset = datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)})
    datasets.load_dataset = lambda *_, **__: dataset
    clock = StepClock()

    class Bar(tqdm.auto.tqdm):  # type: ignore[misc, type-arg]
        """Replaces the script's progress bar."""

        def update(self, n: float = 1) -> Any:
            """Called after each step."""
            clock.tick()
            if len(clock.times) > int(steps):
                raise _LastStep
            return super().update(n)

    tqdm.auto.tqdm = Bar
    accelerate.tracking.get_available_trackers().clear()  # else `--report_to all` logs to MLflow, which costs time and memory
    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[dtype]
    sys.argv = [
        script, "--pretrained_model_name_or_path", f"{workspace}/base_model", "--dataset_name", "pairs",
        "--output_dir", f"{workspace}/published", "--resolution", size_px, "--train_batch_size", batch,
        "--max_train_steps", str(int(steps) + 1), "--learning_rate", "1e-4", "--lr_warmup_steps", "0",
        "--conditioning_dropout_prob", "0.05", "--random_flip", "--use_ema", "--mixed_precision", precision, "--seed", "0",
        "--report_to", "all",
    ]  # fmt: skip
    try:
        runpy.run_path(script, run_name="__main__")
    except _LastStep:
        clock.write(Path(out), int(batch), int(warm_up))


if __name__ == "__main__":
    main()
