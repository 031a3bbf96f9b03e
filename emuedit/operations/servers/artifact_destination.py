"""Where the MLflow server of `emuedit up` has its artifacts: MLFLOW_ARTIFACTS_DESTINATION of the first start, then remembered.

MLflow's tables contain `mlflow-artifacts:/...` and not the location, so at another one every earlier artifact would be missing.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

from emuedit.data.atomic_file import write_private
from emuedit.operations.servers.background_process import read_record
from emuedit.tracking.service_errors import hide_password

DESTINATION_ENV = "MLFLOW_ARTIFACTS_DESTINATION"
"""A location such as s3://bucket/emuedit/mlflow, or a folder."""
DESTINATION_FILE = "artifacts-destination"
"""File in the data folder with the location, if it is not the data folder itself."""


class DestinationError(RuntimeError):
    """Raised if a start would use another location than the earlier ones."""


def default_destination(folder: Path) -> str:
    """The location in a data folder that is used if the variable was never set."""
    return str(folder / "artifacts")


def read_destination(folder: Path) -> str:
    """The location for a data folder: the one of earlier starts, else that of the variable, else a folder in the data folder."""
    return _earlier(folder) or _from_variable() or default_destination(folder)


def remember_destination(folder: Path) -> None:
    """Store the variable's location in a data folder that has none yet. Raises DestinationError if they differ."""
    earlier, variable = _earlier(folder), _from_variable()
    path = folder / DESTINATION_FILE
    if earlier and variable and earlier.rstrip("/") != variable.rstrip("/"):
        raise DestinationError(
            f"want {DESTINATION_ENV} not set, or {hide_password(earlier)} as at the first start of {folder}, got "
            f"{hide_password(variable)}, where earlier artifacts are missing; to move them: `emuedit down`, copy all artifacts, "
            f"and write the new location to {path}"
        )
    if earlier:
        return
    if variable:
        write_private(path, variable + "\n")  # a location may contain a password
        return
    record = read_record(folder, "mlflow")
    if record and DESTINATION_ENV in record.optional:
        raise DestinationError(
            f"want {DESTINATION_ENV} as when the MLflow of {folder} was started, got none, and there is no {path}; set it once, "
            "and later starts remember it"
        )


def _earlier(folder: Path) -> str:
    """The location of earlier starts; empty if there was none, or if they left no artifacts in the data folder."""
    try:
        text = (folder / DESTINATION_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        text = ""
    if text:
        return _absolute(text, folder)
    default = Path(default_destination(folder))
    return str(default) if default.is_dir() and any(default.iterdir()) else ""


def _from_variable() -> str:
    """The location in the variable; empty if it is not set."""
    text = os.environ.get(DESTINATION_ENV, "").strip()
    return _absolute(text, Path.cwd()) if text else ""


def _absolute(location: str, base: Path) -> str:
    """A URL as it is; a path below `base` unless it is absolute."""
    return location if urlsplit(location).scheme else os.path.normpath(base / location)
