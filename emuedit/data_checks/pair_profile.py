"""The profile of a dataset: measurements for its checks, small enough to be stored with a registered model for later comparison.

A profile is two files: `profile.json`, and `embeddings.safetensors` with CLIP embeddings of the sampled images in float16.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from emuedit.data.atomic_file import replacing

PROFILE, EMBEDDINGS = "profile.json", "embeddings.safetensors"
MAX_WORDS = 50_000
"""Number of most frequent words in a profile."""
FORMAT = 1
"""Format version; increased when older profiles become incomparable."""
FloatArray = npt.NDArray[np.floating[Any]]


class ProfileError(ValueError):
    """Raised for a folder without a readable profile."""


@dataclass(frozen=True)
class PairProfile:
    """Measurements of all kept pairs, and of a sample of their images."""

    tasks: dict[str, int]
    """Task -> kept pairs."""
    words: dict[str, int]
    """Word in instructions and captions -> count; the MAX_WORDS most frequent ones."""
    instruction_lengths: dict[str, int]
    """Number of words -> number of instructions."""
    caption_lengths: dict[str, int]
    """Number of words -> number of captions."""
    texts: dict[str, float] = field(default_factory=dict)
    """Check -> measured value, for texts."""
    pictures: dict[str, float] = field(default_factory=dict)
    """Check -> measured value, for sampled images."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Check -> a few pair ids, files or texts that violate it."""
    excluded: dict[str, int] = field(default_factory=dict)
    """Check -> number of texts of imported pairs that it leaves out."""
    sample: int = 0
    """Number of pairs whose images were checked."""
    clip: str = ""
    """Content hash of the CLIP model that embedded them."""
    format: int = FORMAT

    @property
    def n_pairs(self) -> int:
        """Number of kept pairs."""
        return sum(self.tasks.values())


Embeddings = dict[str, FloatArray]
"""`source` and `target` -> unit vectors float [N, D] of the sampled images."""


def write(folder: Path, profile: PairProfile, embeddings: Embeddings) -> None:
    """Write a profile to a folder, each file atomically; `profile.json` last."""
    arrays = {name: np.ascontiguousarray(vectors, np.float16) for name, vectors in embeddings.items()}
    with replacing(folder / EMBEDDINGS) as partial:
        save_file(arrays, partial)
    with replacing(folder / PROFILE) as partial:
        partial.write_text(json.dumps(asdict(profile), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> tuple[PairProfile, Embeddings]:
    """Read a profile. Raises ProfileError if it is missing, damaged or has another format."""
    try:
        values = json.loads((folder / PROFILE).read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ProfileError(
                f"want a profile of format {FORMAT} in {folder}, got {values.get('format')}; run the validation again"
            )
        profile = PairProfile(**{name: values[name] for name in (f.name for f in fields(PairProfile))})
        vectors = {name: np.asarray(array, np.float32) for name, array in load_file(folder / EMBEDDINGS).items()}
    except FileNotFoundError as error:
        raise ProfileError(
            f"want {PROFILE} and {EMBEDDINGS} of a validation, got no {Path(error.filename or EMBEDDINGS).name} in {folder}"
        ) from error
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProfileError(f"{folder / PROFILE} is not a profile ({error!r}); run the validation that wrote it again") from error
    except SafetensorError as error:
        raise ProfileError(
            f"{folder / EMBEDDINGS} is not a profile's ({error}); run the validation that wrote it again"
        ) from error
    return profile, vectors
