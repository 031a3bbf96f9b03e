"""The registered model, as MLflow loads it: this file travels with the version, and so does the code of emuedit that it needs.

In: one row an edit, `image` (base64 PNG, JPEG, ...), `instruction`, perhaps `task`.
Out: `image` (base64 PNG), `task`, `probability`.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

COLUMNS = ("image", "instruction", "task")


class EditorModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow is Any
    """Edits pictures by instruction."""

    def load_context(self, context: Any) -> None:
        """Open the editor, its router and its packs, once."""
        from emuedit.editor.package import Bundle

        self.bundle = Bundle.load(Path(context.artifacts["defaults"]).parent)

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One edit a row. `params`: steps, s_I, s_T, phi, hold, alpha, seed; what is missing is as it was measured.

        Raises ValueError, naming the row, for what cannot be edited: nothing is answered then.
        """
        from dataclasses import replace

        from emuedit.data import image_io

        if not {"image", "instruction"} <= set(model_input.columns):
            raise ValueError(f"want columns {', '.join(COLUMNS)} (the last may be missing), got {[*model_input.columns]}")
        told = dict(params or {})
        seed = int(told.pop("seed", 0))
        knobs = replace(self.bundle.knobs, **told)
        answers = []
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                picture = image_io.read_image(_decoded(row["image"]))
                task = row.get("task")
                tasks = [task] if isinstance(task, str) and task else []
                (turn,) = self.bundle.edit(picture.pixels, [str(row["instruction"] or "")], tasks, seed, knobs)
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
            image = base64.b64encode(image_io.to_png(turn.pixels)).decode("ascii")
            answers.append(
                {"image": image, "task": turn.task, "probability": 1.0 if turn.probability is None else turn.probability}
            )
        return pd.DataFrame(answers, columns=["image", "task", "probability"])


def _decoded(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"want the bytes of a picture file in base64, got {type(text).__name__}")
    try:
        return base64.b64decode(text.removeprefix("data:").partition("base64,")[2] or text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"want the bytes of a picture file in base64, got {text[:40]!r} ({error})") from error


mlflow.models.set_model(EditorModel())
