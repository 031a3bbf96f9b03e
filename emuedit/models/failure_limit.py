"""Tell an LLM that does not answer from one that does not answer a few questions."""

from collections import deque
from dataclasses import dataclass, field

from emuedit.models.language_model import LLMError

WINDOW = 100
"""Captions that the share is of. Ours."""


@dataclass
class FailureLimit:
    """Stops a run in which more than `max_share` of the last 100 captions have a question that failed.

    A caption counts once, however many of its questions fail: something about it may be odd. The first 100 captions may have as
    many failed ones as any later 100, so that a short run, too, is not stopped by one.
    """

    max_share: float
    last_error: LLMError | None = None
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """For each of the last captions, whether one of its questions failed."""

    def start_caption(self) -> None:
        """The questions that follow are those of another caption."""
        self.recent.append(False)

    def count(self, error: LLMError) -> None:
        """Count a failed question of the present caption. Raises LLMError beyond the limit, caused by this error."""
        self.recent[-1], self.last_error = True, error
        n_failed, n_allowed = sum(self.recent), self.max_share * WINDOW
        if n_failed > n_allowed:
            raise LLMError(
                f"want at most {n_allowed:g} of {WINDOW} captions with a question that the LLM does not answer, got {n_failed} "
                f"of {len(self.recent)}; run the stage again when it answers: earlier answers are kept. The last error: {error}"
            ) from error
