"""The process of a stage, forked from `tests.warm_server`. The tests import this, too, and so it imports little."""

import importlib
import os
import signal
import sys
from collections.abc import Mapping
from typing import NoReturn

from tests.warm_server import fork_servers


def run(folder: str, stage: str, output: str, environment: Mapping[str, str]) -> NoReturn:
    """Do what `python paused_stage.py <stage>` does in `folder`, as a shell starts it for `nohup ... & > output`.

    A stage must listen to SIGINT all the same.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # which the fork server blocks
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, folder)  # code of the workspace comes first
    fork_servers()
    assert "emuedit.data.shards" not in sys.modules, "what has imported it does not see the change of paused_stage"
    module = importlib.import_module("tests.stages.paused_stage")
    sys.modules["__main__"] = module  # which the stage's own workers import
    module.main(stage)
