"""The stages of the pipeline: each file is a stage of `dvc.yaml` and a section of `params.yaml` of the same name.

Every stage has the same interface: `<Stage>Params`, `run(params, root) -> Summary`, and a `HEADLINE` that says what it made.
Stages do not import each other; they meet in files.
"""

import importlib
import os
import signal
import sys
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import NoReturn

from emuedit import config
from emuedit.data.publish import Summary
from emuedit.runtime import set_env_defaults


def stage_main(stage: str) -> NoReturn:
    """Run a stage in the working folder as `python -m emuedit.stages.<stage>` does, and exit.

    Exit status: 0 done, 1 for an error that is explained in one line, 130 or 143 after ctrl-c or SIGTERM.
    """
    set_env_defaults()
    start = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # also where a shell made the process ignore it
    try:
        module = importlib.import_module(f"emuedit.stages.{stage}")  # by its own name, which pickled classes keep
        summary = module.run(config.load(getattr(module, f"{stage.title()}Params"), stage), Path())
    except StageInterrupted as interrupted:
        print(f"{stage}: stopped by {interrupted}; the same command resumes", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(128 + interrupted.number)  # a normal exit would wait for threads, such as one whose LLM does not answer
    except Exception as error:  # the outermost handler: our own errors explain themselves, others keep their trace
        if not type(error).__module__.startswith("emuedit."):
            traceback.print_exc()
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"{stage}: {error}{notes}", file=sys.stderr, flush=True)
        sys.exit(1)
    print(f"{stage}: {describe(summary, module.HEADLINE)} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    sys.exit(0)


class StageInterrupted(KeyboardInterrupt):
    """Raised in the main thread by a signal that asks the stage to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def describe(summary: Summary, headline: str) -> str:
    """The headline filled with the stage's counts; a count that is not there is 0."""
    return headline.format_map(defaultdict(int, summary.counts))


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise StageInterrupted(number)
