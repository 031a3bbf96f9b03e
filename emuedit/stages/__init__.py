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

from emuedit import config, params_check
from emuedit.data.publish import Summary
from emuedit.failures import FailureKind, kind_of
from emuedit.processes import keep_compiled_modules, leave, set_env_defaults

NETWORK_STATUS, OUT_OF_MEMORY_STATUS = 75, 71
"""Exit statuses of a stage whose network or service failed, and of one that ran out of memory: it may be tried again. They are
EX_TEMPFAIL and EX_OSERR of sysexits.h."""
MEMORY_ENV = "EMUEDIT_HALVE_BATCHES"
"""How often a stage shall halve what it computes at once, after it ran out of memory; 0 by default. Results stay the same."""
_STATUS = {FailureKind.NETWORK: NETWORK_STATUS, FailureKind.MEMORY: OUT_OF_MEMORY_STATUS, FailureKind.OTHER: 1}


def stage_main(stage: str) -> NoReturn:
    """The process of `python -m emuedit.stages.<stage>`: `run_stage`, and the exit, which waits for no thread."""
    leave(run_stage(stage))


def run_stage(stage: str) -> int:
    """Run a stage in the working folder and return its exit status.

    That is 0 done, 1 for an error that is explained in one line, NETWORK_STATUS or OUT_OF_MEMORY_STATUS for one of these
    kinds, 130 or 143 after ctrl-c or SIGTERM. All sections of `params.yaml` are checked first, also those of later stages.
    """
    set_env_defaults()
    keep_compiled_modules()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # also where a shell made the process ignore it
    try:
        module = importlib.import_module(f"emuedit.stages.{stage}")  # by its own name, which pickled classes keep
        params_check.check(Path())  # after the import: if that brought torch, no other process has to
        start = time.monotonic()
        summary = module.run(config.load(getattr(module, f"{stage.title()}Params"), stage), Path())
    except StageInterrupted as interrupted:
        print(f"{stage}: stopped by {interrupted}; the same command resumes", file=sys.stderr, flush=True)
        return 128 + interrupted.number
    except Exception as error:  # the outermost handler: our own errors explain themselves, others keep their trace
        if not type(error).__module__.startswith("emuedit."):
            traceback.print_exc()
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"{stage}: {error}{notes}", file=sys.stderr, flush=True)
        return exit_status(error)
    print(f"{stage}: {describe(summary, module.HEADLINE)} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return 0


def exit_status(error: BaseException) -> int:
    """NETWORK_STATUS, OUT_OF_MEMORY_STATUS or 1, by the error and those that caused it, also in another process."""
    return _STATUS[kind_of(error)]


def batch_divisor() -> int:
    """By what a stage divides what it computes at once: 1, or 2 or more after it ran out of memory (MEMORY_ENV)."""
    return 2 ** int(os.environ.get(MEMORY_ENV, "0"))


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
