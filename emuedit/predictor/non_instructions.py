"""Texts that are not edit instructions, which the task predictor must refuse."""

from pathlib import Path
from typing import Literal

from emuedit import config

NonInstructionSplit = Literal["fit", "test"]
NON_INSTRUCTIONS = "emuedit/predictor/non_instructions.yaml"


def load_non_instructions(file: Path, split: NonInstructionSplit) -> dict[str, list[str]]:
    """Kind (question, gibberish, another language, ...) -> texts of a split: `fit` for training, `test` for measurements.

    Raises ParamsError for a file without this split.
    """
    kinds = config.read_yaml(file)
    if not kinds or not all(isinstance(texts, dict) and split in texts for texts in kinds.values()):
        raise config.ParamsError(f"want a list `{split}` of texts for each kind in {file}")
    return {kind: [str(text) for text in texts[split]] for kind, texts in kinds.items()}
