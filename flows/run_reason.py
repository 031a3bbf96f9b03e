"""Why a run started, in one line that is stored with it: `schedule: weekly`, `metric: success of the champion fell to 0.41`.

A deployment sets its reason in `parameters`; a run without a reason was started by a person.
"""

from emuedit.process_identity import user_at_host

KINDS = ("schedule", "data", "metric", "person")


class ReasonError(ValueError):
    """Raised for a reason of an unknown kind."""


def is_attended(reason: str) -> bool:
    """Whether a person started the run, as without a reason, and reads what it prints."""
    return not reason or reason.startswith("person:")


def complete_reason(reason: str) -> str:
    """The reason of a run as it is stored; if empty, the user of this process. Raises ReasonError for an unknown kind."""
    if not reason:
        return f"person: {user_at_host()}"
    kind = reason.partition(":")[0]
    if kind not in KINDS:
        raise ReasonError(f"want a reason that begins with {', '.join(f'{word}:' for word in KINDS)}, got {reason!r}")
    return reason
