"""Result of a check of `emuedit doctor`."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of a check: its name, status, details, and the fix if it did not pass."""

    name: str
    status: Status
    detail: str
    fix: str = ""
