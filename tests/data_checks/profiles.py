"""Small profiles of kept pairs, and embeddings of pictures of one distribution."""

from typing import Any

import numpy as np

from emuedit.data_checks.pair_profile import Embeddings, PairProfile

TEXTS = {
    "damaged": 0.0, "other_language": 0.0, "instruction_words": 0.0, "caption_words": 0.0, "duplicate_instructions": 0.0,
    "most_repeated_instruction": 0.01,
}  # fmt: skip
PICTURES = {"picture_sizes": 0.0, "picture_modes": 0.0, "unchanged_pictures": 0.0, "equal_pictures": 0.0, "picture_text": 0.95}


def make_profile(**changes: Any) -> PairProfile:
    values: dict[str, Any] = {
        "tasks": {"local": 400, "remove": 300},
        "words": {"make": 400, "circle": 700, "red": 300},
        "instruction_lengths": {"4": 700},
        "caption_lengths": {"8": 1400},
        "texts": TEXTS,
        "pictures": PICTURES,
        "sample": 64,
        "clip": "c",
    }
    return PairProfile(**values | changes)


def make_vectors(seed: int, n: int = 64, shift: float = 0.0) -> Embeddings:
    """Unit vectors [n, 8] around a direction, which `shift` turns."""
    random = np.random.default_rng(seed)
    vectors = random.normal(0, 0.3, (n, 8)) + np.eye(8)[0] + shift * np.eye(8)[1]
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return {"source": unit, "target": unit}
