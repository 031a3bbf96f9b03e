"""The error of a training that cannot continue."""


class TrainingError(RuntimeError):
    """Raised when training cannot continue."""
