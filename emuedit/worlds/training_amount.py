"""How long a photo world trains: steps, batch and learning rate for the expected number of pairs.

Presets are published settings for hundreds of thousands of pairs. For fewer, the training makes a number of passes over them. A
preset with a large batch would then have few optimizer steps, so its batch and its steps both grow with the square root of the
number of pairs.
"""

import math
from dataclasses import dataclass

from emuedit.config import read_yaml
from emuedit.training.presets import FOLDER

_PASSES, _FEWEST_STEPS = 20, 500
_BATCH = 16
"""The smallest batch, and the divisor of all others, so that up to 16 processes can share it. These values are ours, and so is
the square root."""


@dataclass(frozen=True)
class TrainingAmount:
    """Values of the section `train`, with their reasons."""

    steps: int
    steps_reason: str
    batch_size: int
    batch_reason: str
    accumulation_steps: int
    lr: float
    lr_reason: str


def choose(preset: str, n_pairs: float) -> TrainingAmount:
    """The training for about n_pairs kept pairs: at most the steps and the batch of the preset, and passes of at most its size.

    The learning rate is scaled with the square root of the batch, a rule for Adam (Malladi et al., arXiv 2205.10287).
    """
    settings = read_yaml(FOLDER / f"{preset}.yaml")
    most_steps, most_pairs, n_accumulated = settings["steps"], settings["batch_size"], settings.get("accumulation_steps", 1)
    n_samples = _PASSES * n_pairs
    at_least = max(n_samples / most_pairs, _FEWEST_STEPS)
    steps = min(most_steps, int(round(max(at_least, math.sqrt(_FEWEST_STEPS * n_samples / _BATCH)), -2)))
    batch = min(most_pairs, max(_BATCH, round(n_samples / steps / _BATCH) * _BATCH))
    steps = min(most_steps, max(_FEWEST_STEPS, int(round(n_samples / batch, -2))))  # the batch was rounded
    passes, share, per_pass = steps * batch / n_pairs, batch / most_pairs, most_pairs // n_accumulated
    limit = f"the preset's {most_steps} are for more pairs"
    if steps in (most_steps, _FEWEST_STEPS):
        limit = "the preset's steps" if steps == most_steps else f"{_FEWEST_STEPS} steps are the minimum"
    is_smaller = batch < most_pairs
    return TrainingAmount(
        steps=steps,
        steps_reason=f"{passes:.{0 if passes >= 1 else 2}f} passes over about {n_pairs:.0f} kept pairs; {limit}",
        batch_size=batch,
        batch_reason=f"the preset's {most_pairs} are for more pairs" if is_smaller else "of the preset",
        accumulation_steps=next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= per_pass),
        lr=float(f"{settings['lr'] * math.sqrt(share):.2g}"),
        lr_reason=f"the preset's {settings['lr']} * sqrt({batch} / {most_pairs})" if is_smaller else "of the preset",
    )
