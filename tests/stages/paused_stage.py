"""The main module of a stage that a test can stop: it does what the command does, and waits PAUSE_S seconds after a shard.

MLflow is hidden, because importing it takes seconds; metrics go to stats.jsonl all the same.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from emuedit.data import shards

_write_shard = shards.write_shard


def write_shard_and_pause(path: str | Path, records: Sequence[Any], kind: type[Any] | None = None) -> None:
    """Write a shard as `shards.write_shard` does, then wait."""
    _write_shard(path, records, kind)
    if Path(path).name.startswith("shard-"):
        time.sleep(float(os.environ["PAUSE_S"]))


shards.write_shard = write_shard_and_pause  # in worker processes too: they import this file
sys.modules |= {"mlflow": None, "mlflow.entities": None}  # type: ignore[dict-item]


def main(stage: str) -> NoReturn:
    """Run a stage in the working folder with one thread; ends this process."""
    import torch

    from emuedit.stages import stage_main  # after the change, which the stages' imports then see

    torch.set_num_threads(1)
    if stage == "train":  # estimates take a second of a core
        from emuedit.training import loop, training_checks

        loop.count_flops = lambda *arguments: 1
        training_checks.check_memory = lambda *arguments: []
    stage_main(stage)
