"""Variables of the shell that the worker's runs read: keys of services, mail, and settings of stages.

The worker and MLflow's server have the environment of the shell in which `emuedit up` started them. The names of variables, not
their values, are stored, so that a start from another shell can say which are missing.
"""

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from emuedit.data.atomic_file import replacing
from emuedit.operations.servers.background_process import BackgroundCommand

SERVICES = ("*_API_KEY", "HF_TOKEN", "HF_ENDPOINT", "EMUEDIT_SMTP_URL", "EMUEDIT_MAIL_*", "OPENLINEAGE_*")
"""Patterns of variables that name an account or a service: a worker that runs with other values is restarted."""
SETTINGS = (
    "EMUEDIT_WORKSPACE_NAME", "EMUEDIT_HALVE_BATCHES", "EMUEDIT_PROGRESS_SECONDS", "HF_HOME", "HF_HUB_OFFLINE",
    "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
)  # fmt: skip
"""Other variables that a worker passes on to its runs; they take effect at its next start."""
RECORDED = {"mlflow": (), "worker": SETTINGS}
"""Service -> patterns of variables that are recorded beside the optional ones of its command."""


def names_in(environment: Mapping[str, str], patterns: Sequence[str] = SERVICES) -> list[str]:
    """The variables that are set and match a pattern, sorted."""
    return sorted(name for name, value in environment.items() if value and any(fnmatchcase(name, word) for word in patterns))


def record_start(folder: Path, command: BackgroundCommand) -> list[str]:
    """Record the names that a new process of RECORDED has, in the data folder; returns those that only the one before it had."""
    names = sorted({*command.optional_settings, *names_in(command.environment, RECORDED[command.name])})
    path = folder / f"{command.name}-variables.json"
    try:
        earlier = {str(name) for name in json.loads(path.read_text(encoding="utf-8"))}
    except (FileNotFoundError, ValueError, TypeError):
        earlier = set()
    with replacing(path) as partial:
        partial.write_text(json.dumps(names) + "\n", encoding="utf-8")
    return sorted(earlier - set(names))
