"""Learning-rate schedules."""

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["linear", "cosine"]


@dataclass(frozen=True)
class LrSchedule:
    """Warm-up, plateau, and decay to zero over the last steps: linear (arXiv 2405.18392) or cosine (arXiv 1608.03983)."""

    steps: int
    lr: float
    warmup_steps: int
    decay_share: float
    """Fraction of the steps, at the end, in which the rate decays, in [0, 1]."""
    decay: Decay = "linear"

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from 0."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        remaining = min(1.0, (self.steps - step) / max(1.0, self.decay_share * self.steps))
        fall = remaining if self.decay == "linear" else 0.5 - 0.5 * math.cos(remaining * math.pi)
        return self.lr * warmup * fall
