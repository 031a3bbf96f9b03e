"""The profile of a dataset: what its checks measured, small enough to travel with a registered model and be compared with later.

A profile is two files: `profile.json`, and `embeddings.safetensors` with CLIP embeddings of the sampled pictures in float16.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

PROFILE, EMBEDDINGS = "profile.json", "embeddings.safetensors"
MAX_WORDS = 50_000
"""Words that a profile holds, the most frequent ones."""
FORMAT = 1
"""Raised when older profiles can no longer be compared with."""
FloatArray = npt.NDArray[np.floating[Any]]


class ProfileError(ValueError):
    """Raised for a folder that holds no profile that can be read."""


@dataclass(frozen=True)
class PairProfile:
    """Figures of all kept pairs, and of a sample of their pictures."""

    tasks: dict[str, int]
    """Task -> kept pairs."""
    words: dict[str, int]
    """Word of instructions and captions -> how often it occurs; the most frequent MAX_WORDS of them."""
    instruction_lengths: dict[str, int]
    """Words of an instruction -> instructions."""
    caption_lengths: dict[str, int]
    """Words of a caption -> captions."""
    texts: dict[str, float] = field(default_factory=dict)
    """Figures of the texts by the name of their check."""
    pictures: dict[str, float] = field(default_factory=dict)
    """Figures of the sampled pictures by the name of their check."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Check -> ids of pairs, files or texts that count against it, a few of them."""
    sample: int = 0
    """Pairs whose pictures were looked at."""
    clip: str = ""
    """The CLIP that embedded them, by its content."""
    format: int = FORMAT

    @property
    def n_pairs(self) -> int:
        """Kept pairs."""
        return sum(self.tasks.values())


Embeddings = dict[str, FloatArray]
"""`source` and `target` -> unit vectors float [N, D] of the sampled pictures."""


def write(folder: Path, profile: PairProfile, embeddings: Embeddings) -> None:
    """Write a profile to a folder; `profile.json` last."""
    arrays = {name: np.ascontiguousarray(vectors, np.float16) for name, vectors in embeddings.items()}
    save_file(arrays, folder / EMBEDDINGS)
    (folder / PROFILE).write_text(json.dumps(asdict(profile), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> tuple[PairProfile, Embeddings]:
    """Read a profile. Raises ProfileError where there is none, or one of another format."""
    try:
        values = json.loads((folder / PROFILE).read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ProfileError(f"want a profile of format {FORMAT} in {folder}, got {values.get('format')}; make it again")
        profile = PairProfile(**{name: values[name] for name in (f.name for f in fields(PairProfile))})
        vectors = {name: np.asarray(array, np.float32) for name, array in load_file(folder / EMBEDDINGS).items()}
    except FileNotFoundError as error:
        raise ProfileError(
            f"want {PROFILE} and {EMBEDDINGS} of a validation, got no {Path(error.filename or EMBEDDINGS).name} in {folder}"
        ) from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ProfileError(f"{folder / PROFILE} is not a profile ({error!r}); run the validation that wrote it again") from error
    return profile, vectors
