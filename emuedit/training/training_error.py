"""The errors of a training that cannot continue."""


class TrainingError(RuntimeError):
    """Raised when training cannot continue."""


class BadPairsError(TrainingError):
    """Raised for a loss that is not finite. `pair_ids`: the pairs of the loss."""

    def __init__(self, message: str, pair_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.pair_ids = pair_ids
