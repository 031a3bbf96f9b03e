"""The error of a training that cannot go on."""


class TrainingError(RuntimeError):
    """Raised when training cannot go on."""
