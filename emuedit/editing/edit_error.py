"""Errors of `Editor`'s arguments. A source that holds no editor is a `package_folder.PackageError`."""


class EditError(ValueError):
    """Raised for an edit that cannot be made: invalid images, instructions, tasks or settings."""


class RefusedInstructionError(EditError):
    """Raised for a text that the task predictor does not take for an edit instruction; rephrase it, or name the task."""
