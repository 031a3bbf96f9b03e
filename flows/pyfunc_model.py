"""The registered model as MLflow loads it. This file is stored with the version, together with the code of emuedit.

Input: one row per edit, `image` (base64 PNG, JPEG, ...), `instruction` and optionally `task`, which is predicted otherwise.
Output: `image` (base64 PNG), `task`, `probability`, `changed_share` (fraction of changed pixels), `changed_box` (left, top, right
and bottom of the changed area in px, the latter two exclusive; empty if nothing changed). With the param `mask`, also `mask`: the
changed pixels in white, as base64 PNG.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

COLUMNS = ("image", "instruction", "task")
OUTPUTS = ("image", "task", "probability", "changed_share", "changed_box")
MASK = "mask"
"""Param, and the column of the answer that it adds."""


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
        Raises ValueError, which names the row, for invalid input; then no row is answered.
        """
        from emuedit.data import image_io
        from emuedit.data.pixel_budget import IN_FLIGHT

        if not {"image", "instruction"} <= set(model_input.columns):
            raise ValueError(f"want columns {', '.join(COLUMNS)} (the last may be missing), got {[*model_input.columns]}")
        changes = dict(params or {})
        with_mask = changes.pop(MASK, False)
        if with_mask not in (True, False):
            raise ValueError(f"want true or false for the param {MASK}, got {with_mask!r}")
        settings = self.editor.settings.with_changes(changes)
        answers = []
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                content = _decode(row["image"])
                with IN_FLIGHT.reserve(image_io.count_pixels(content)):
                    answers.append(self._answer(content, row, settings, with_mask))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
        return pd.DataFrame(answers, columns=[*OUTPUTS, *([MASK] if with_mask else [])])

    def _answer(self, content: bytes, row: Mapping[Any, Any], settings: Any, with_mask: bool) -> dict[str, Any]:
        """The answer to one row: read, edit and encode, each of which needs memory for the whole image."""
        from emuedit.data import image_io
        from emuedit.editor import changed_area

        source = image_io.read_image(content)
        task = row.get("task")
        tasks = [task] if isinstance(task, str) and task else None
        (turn,) = self.editor.edit_turns(source.pixels, [_instruction(row["instruction"])], tasks, settings)
        choice = turn.choice
        answer = {
            "image": _encode(image_io.to_png(turn.pixels, source)),
            "task": choice.task,
            "probability": 1.0 if choice.probability is None else choice.probability,
            "changed_share": turn.touched.share,
            "changed_box": list(turn.touched.box or ()),
        }
        if with_mask:
            answer[MASK] = _encode(image_io.to_png(changed_area.mask_image(turn.mask)))
        return answer


def _instruction(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():  # pandas uses NaN for an empty cell
        raise ValueError(f"want an instruction, such as 'make the circle red', got {value!r}")
    return value


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _decode(text: Any) -> bytes:
    """Decode base64 in its usual forms: with line breaks, URL-safe, without padding, or as a data URL."""
    if not isinstance(text, str):
        raise ValueError(f"want the bytes of an image file in base64, got {type(text).__name__}")
    letters = "".join((text.partition("base64,")[2] if text.lstrip().startswith("data:") else text).split())
    letters = letters.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except ValueError as error:  # binascii.Error, or non-ASCII text
        raise ValueError(f"want the bytes of an image file in base64, got {text[:40]!r} ({error})") from error


mlflow.models.set_model(EditorModel())
