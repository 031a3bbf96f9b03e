"""What a check of `emuedit doctor` says."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of a check: its name, whether all is well, what was measured, and what to do if it is not."""

    name: str
    status: Status
    detail: str
    fix: str = ""
