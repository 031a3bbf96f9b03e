"""`dvc.lock`, in which DVC records the stages that ran: command, params, and the inputs and outputs with their hashes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

LOCK_FILE = "dvc.lock"
RESTORE = f"restore it with `git checkout -- {LOCK_FILE}`, or delete it to run all stages"
"""What to do about a damaged one in a workspace."""


class LockFileError(ValueError):
    """Raised for a damaged `dvc.lock`."""


def read_stages(root: Path) -> dict[str, Any]:
    """Stage -> its entry in the `dvc.lock` of a workspace; empty if there is no such file. Raises LockFileError."""
    file = root / LOCK_FILE
    return parse_stages(file.read_bytes(), str(file), RESTORE) if file.exists() else {}


def parse_stages(content: bytes | str, place: str, advice: str) -> dict[str, Any]:
    """Stage -> its entry. Raises LockFileError, with the place and the advice, for content that DVC does not write."""
    try:
        stages = dict(yaml.safe_load(content).get("stages", {}))
        for entry in (entry for stage in stages.values() for kind in ("deps", "outs") for entry in stage.get(kind, ())):
            entry["path"].encode()
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise LockFileError(f"want a {LOCK_FILE} as DVC writes it, got a damaged one: {place}; {advice}") from error
    return stages


def output_hashes(stages: Mapping[str, Any]) -> dict[str, str]:
    """Path -> hash of the outputs of all stages."""
    return {out["path"]: hash_of(out) for stage in stages.values() for out in stage.get("outs", ())}


def hash_of(entry: Mapping[str, Any]) -> str:
    """The hash of an input or output, that of a folder with `.dir`; empty if it has none."""
    return str(entry.get(entry.get("hash", "md5"), ""))
