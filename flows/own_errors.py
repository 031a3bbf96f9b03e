"""Which errors explain themselves: those of this project. Any other is shown with its trace."""

_OWN = ("emuedit", "flows")


def explains_itself(error: BaseException) -> bool:
    """Whether the class of an error was defined here; its message then says what was wanted, what was found and what to do."""
    return type(error).__module__.split(".")[0] in _OWN
