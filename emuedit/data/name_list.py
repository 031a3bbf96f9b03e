"""Lists of names in messages."""

from collections.abc import Sequence


def first_names(names: Sequence[str], n_shown: int = 5) -> str:
    """At most `n_shown` of the names in one line, and the number of the others: "a, b and 3 more"."""
    n_hidden = len(names) - n_shown
    return ", ".join(names[:n_shown]) + (f" and {n_hidden} more" if n_hidden > 0 else "")
