"""The stages of the pipeline: each file is a stage of `dvc.yaml` and a section of `params.yaml` of the same name.

Every stage has the same interface: `<Stage>Params`, `run(params, root) -> Summary`, and a `HEADLINE` template of its results.
Stages do not import each other; they communicate through files.
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
from emuedit.failures import FailureKind, explains_itself, kind_of
from emuedit.processes import exit_process, keep_compiled_modules, set_env_defaults

NETWORK_STATUS, OUT_OF_MEMORY_STATUS = 75, 71
"""Exit statuses for a failed network or service and for running out of memory, both retryable: EX_TEMPFAIL and EX_OSERR of
sysexits.h."""
MEMORY_ENV = "EMUEDIT_HALVE_BATCHES"
"""Number of times a stage halves its batch after running out of memory; default 0. Results are unchanged up to rounding."""
_STATUS = {FailureKind.NETWORK: NETWORK_STATUS, FailureKind.MEMORY: OUT_OF_MEMORY_STATUS, FailureKind.OTHER: 1}


def stage_main(stage: str) -> NoReturn:
    """Entry point of `python -m emuedit.stages.<stage>`: `run_stage`, then exit without waiting for threads."""
    exit_process(run_stage(stage))


def run_stage(stage: str) -> int:
    """Run a stage in the working folder and return its exit status.

    Exit status: 0 done, 1 for an error that is explained in one line, NETWORK_STATUS or OUT_OF_MEMORY_STATUS for these kinds,
    130 or 143 after ctrl-c or SIGTERM. All sections of `params.yaml` are checked first, including those of later stages.
    """
    set_env_defaults()
    keep_compiled_modules()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # even if the shell made the process ignore it
    try:
        module = importlib.import_module(f"emuedit.stages.{stage}")  # under its real name, needed for pickled classes
        params_check.check(Path())  # after the import, which may have loaded torch already
        start = time.monotonic()
        summary = module.run(config.load(getattr(module, f"{stage.title()}Params"), stage), Path())
    except StageInterrupted as interrupted:
        print(f"{stage}: stopped by {interrupted}; the same command resumes", file=sys.stderr, flush=True)
        return 128 + interrupted.number
    except Exception as error:  # outermost handler: our errors are printed as one line, others with a traceback
        if not explains_itself(error):
            traceback.print_exc()
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"{stage}: {error}{notes}", file=sys.stderr, flush=True)
        return exit_status(error)
    print(f"{stage}: {describe(summary, module.HEADLINE)} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return 0


def exit_status(error: BaseException) -> int:
    """NETWORK_STATUS, OUT_OF_MEMORY_STATUS or 1, by the error and its causes, also from another process."""
    return _STATUS[kind_of(error)]


def halved(n: int) -> tuple[int, int]:
    """A number in the previous try and in this one of a stage that ran out of memory, each at least 1."""
    return max(1, n // (batch_divisor() // 2)), max(1, n // batch_divisor())


def batch_divisor() -> int:
    """Divisor of a stage's batch size: 1, or at least 2 after it ran out of memory (MEMORY_ENV)."""
    return 2 ** int(os.environ.get(MEMORY_ENV, "0"))


class StageInterrupted(KeyboardInterrupt):
    """Raised in the main thread by a signal that stops the stage."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def describe(summary: Summary, headline: str) -> str:
    """The headline filled in with the stage's counts; missing counts are 0."""
    return headline.format_map(defaultdict(int, summary.counts))


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise StageInterrupted(number)
