"""The registered model as MLflow loads it. This file is stored with the version, together with the code of emuedit.

Input: one row per edit, `image` (base64 PNG, JPEG, ...), `instruction` and optionally `task`, which is predicted otherwise.
Output: `image` (base64 PNG), `task`, `probability`, `changed_share` (fraction of changed pixels), `changed_box` (left, top, right
and bottom of the changed area in px, the latter two exclusive; empty if nothing changed). With the param `mask`, also `mask`: the
changed pixels in white, as base64 PNG.

Status of a server's answer: 400 for invalid input, 503 if memory or the time of the request runs out, 500 for other failures.
"""

import base64
import contextvars
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

COLUMNS = ("image", "instruction", "task")
OUTPUTS = ("image", "task", "probability", "changed_share", "changed_box")
MASK = "mask"
"""Param, and the column of the answer that it adds."""
_TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"
"""Seconds after which MLflow's server answers 504; its thread goes on."""
_IS_SERVER = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
_ARRIVAL, _CLIENT_GONE = "emuedit_arrival_s", "emuedit_client_gone"
"""Names of the context variables of `flows.serving_app`, which is not stored with the model, so they are looked up by name."""
_WAIT_S = 0.5
"""How often a request that waits for its turn looks whether its client has gone."""
_MAX_RESOLUTION_RATIO = 2
"""Clients may set `resolution` to at most this many times that of the editor, as the memory of an edit grows with it. Ours."""
_LOGGER = logging.getLogger(__name__)


class RequestError(MlflowException, ValueError):  # type: ignore[misc]  # mlflow is Any
    """Raised for invalid input: status 400 in a server, a ValueError in Python."""

    def __init__(self, text: str) -> None:
        MlflowException.__init__(self, text, error_code=INVALID_PARAMETER_VALUE)


class EditorModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow is Any
    """Edits images by instruction."""

    def load_context(self, context: Any) -> None:
        """Open the editor, its task predictor and its task packs, once. Raises ManifestError for changed files."""
        from emuedit.data.file_manifest import check_manifest
        from emuedit.editing.api import Editor

        package = Path(context.artifacts["settings"]).parent
        check_manifest(package, is_required=True)
        self.editor = Editor.load(package)

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One edit per row. `params`: `mask`, and fields of EditSettings; by default those with which the editor was evaluated.

        Thread-safe: a row waits until its pixels fit into those that all requests may process at once, see `IN_FLIGHT`.
        Raises RequestError, which names the row, for invalid input, and MlflowException for other failures; then no row is
        answered. In a server, a request ends at its time limit, as its client has got status 504 by then, and when its client
        has closed the connection; and a CUDA error, after which no other CUDA call succeeds, ends the process.
        """
        limit = _RequestLimit.current()
        try:
            return self._answer_rows(model_input, dict(params or {}), limit)
        except MlflowException:
            raise
        except Exception as error:
            raise _to_answer(error) from error

    def _answer_rows(self, model_input: pd.DataFrame, changes: dict[str, Any], limit: "_RequestLimit") -> pd.DataFrame:
        """The answers to all rows. changes: the params."""
        from emuedit.data import image_io
        from emuedit.data.budget import IN_FLIGHT

        if not {"image", "instruction"} <= set(model_input.columns):
            raise RequestError(f"want columns {', '.join(COLUMNS)} (the last may be missing), got {[*model_input.columns]}")
        with_mask = changes.pop(MASK, False)
        if with_mask not in (True, False):
            raise RequestError(f"want true or false for the param {MASK}, got {with_mask!r}")
        settings = self.editor.settings.with_changes(changes)
        answers = []
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                content = _decode(row["image"])
                with IN_FLIGHT.reserve(image_io.count_pixels(content)):
                    answers.append(self._answer(content, row, settings, with_mask, limit))
            except ValueError as error:
                if _is_of_input(error):
                    raise RequestError(f"row {number}: {error}") from error
                raise
        return pd.DataFrame(answers, columns=[*OUTPUTS, *([MASK] if with_mask else [])])

    def _answer(
        self, content: bytes, row: Mapping[Any, Any], settings: Any, with_mask: bool, limit: "_RequestLimit"
    ) -> dict[str, Any]:
        """The answer to one row: read, edit and encode, each of which needs memory for the whole image."""
        from emuedit.data import image_io
        from emuedit.data.budget import EDITS
        from emuedit.editor import changed_area

        limit.check()
        instruction = _instruction(row["instruction"])
        source = image_io.read_image(content)
        self._check_resolution(source.pixels.shape[:2], settings.resolution)
        task = _task(row.get("task"))
        with EDITS.reserve(1, limit.check, limit.wait_s):
            arguments = ([instruction], None if task is None else [task], settings, lambda _: limit.check())
            (turn,) = self.editor.edit_turns(source.pixels, *arguments)
        choice = turn.choice
        answer = {
            "image": _encode(image_io.to_png(turn.pixels, source)),
            "task": choice.task,
            "probability": 1.0 if choice.probability is None else choice.probability,
            "changed_share": turn.changed.share,
            "changed_box": list(turn.changed.box or ()),
        }
        if with_mask:
            answer[MASK] = _encode(image_io.to_png(changed_area.mask_image(turn.mask)))
        return answer

    def _check_resolution(self, size: tuple[int, ...], resolution_px: int) -> None:
        """Raise RequestError if an image of this size (height, width) would be edited at too many pixels; 0: as by default.

        With the padding to the network's grid, very narrow images may have `any_size.MAX_PADDING` times as many.
        """
        from emuedit.core.padding import padded_px

        height, width = size
        limit_px = _MAX_RESOLUTION_RATIO * max(self.editor.sampler.resolution_px, self.editor.settings.resolution)
        if min(resolution_px**2, padded_px(height, width, self.editor.sampler.grid_px)) > limit_px**2:
            raise RequestError(
                f"want a resolution of at most {limit_px} for an image of {width} x {height} pixels, got {resolution_px}; "
                "lower it, or send a smaller image"
            )


@dataclass(frozen=True)
class _RequestLimit:
    """When a request ends without an answer, because nobody waits for it any more."""

    deadline_s: float
    """When the client gets status 504, on the clock of `time.monotonic`; infinity outside a server."""
    client_gone: threading.Event | None

    @classmethod
    def current(cls) -> "_RequestLimit":
        """The limit of this thread's request; no limit outside a server."""
        limit_s = os.environ.get(_TIMEOUT)
        variables = {variable.name: value for variable, value in contextvars.copy_context().items()}
        if limit_s is None or not _is_server():
            return cls(math.inf, None)
        return cls(variables.get(_ARRIVAL, time.monotonic()) + float(limit_s), variables.get(_CLIENT_GONE))

    def wait_s(self) -> float:
        """How long a request may wait until it looks again whether anybody waits for it."""
        return max(0.0, min(_WAIT_S, self.deadline_s - time.monotonic()))

    def check(self) -> None:
        """Raise MlflowException if nobody waits for the answer."""
        if self.client_gone is not None and self.client_gone.is_set():
            raise MlflowException("want a client that waits, got one that has gone", error_code=TEMPORARILY_UNAVAILABLE)
        if time.monotonic() >= self.deadline_s:
            limit = os.environ.get(_TIMEOUT)
            message = f"want an answer within {limit} s, got none yet, as the server is busy; try again later, or send fewer rows"
            raise MlflowException(message, error_code=TEMPORARILY_UNAVAILABLE)


def _is_server() -> bool:
    return os.environ.get(_IS_SERVER) == "true"


def _is_of_input(error: Exception) -> bool:
    """Whether an error is about the input. ValueErrors of libraries are not: the input was checked before."""
    return isinstance(error, RequestError) or (
        isinstance(error, ValueError) and type(error).__module__.partition(".")[0] == "emuedit"
    )


def _to_answer(error: Exception) -> MlflowException:
    """The error with the status of the answer. Ends a server whose GPU answers no more; it answers its open requests first."""
    from emuedit.failures import FailureKind, kind_of

    if _is_of_input(error):
        return RequestError(str(error))
    _LOGGER.error("an edit failed", exc_info=error)
    cause = f"{type(error).__name__}: {error}"
    if kind_of(error) is FailureKind.MEMORY:
        text = f"want memory for the edit, got {cause}; try again later, or send a smaller image"
        return MlflowException(text, error_code=TEMPORARILY_UNAVAILABLE)
    if _is_server() and (type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)):
        os.kill(os.getpid(), signal.SIGTERM)
    return MlflowException(f"want an edit, got {cause}; the server's log has the traceback", error_code=INTERNAL_ERROR)


def _instruction(value: Any) -> str:
    from emuedit.editing.editor_inputs import check_instructions, describe

    if not isinstance(value, str) or not value.strip():  # pandas uses NaN for an empty cell
        raise RequestError(f"want an instruction, such as 'make the circle red', got {describe(value)}")
    return check_instructions([value])[0]


def _task(value: Any) -> str | None:
    """The task of a row; None if it is to be predicted."""
    from emuedit.editing.editor_inputs import describe

    if isinstance(value, str):
        return value or None
    if pd.api.types.is_scalar(value) and pd.isna(value):  # of an empty cell
        return None
    raise RequestError(f"want a task as text, or null to have it predicted, got {describe(value)}")


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _decode(text: Any) -> bytes:
    """Decode base64 in its usual forms: with line breaks, URL-safe, without padding, or as a data URL."""
    if not isinstance(text, str):
        raise RequestError(f"want the bytes of an image file in base64, got {type(text).__name__}")
    letters = "".join((text.partition("base64,")[2] if text.lstrip().startswith("data:") else text).split())
    letters = letters.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except ValueError as error:  # binascii.Error, or non-ASCII text
        raise RequestError(f"want the bytes of an image file in base64, got {text[:40]!r} ({error})") from error


mlflow.models.set_model(EditorModel())
