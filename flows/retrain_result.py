"""The result of a retrain, which its process sends as plain values to the command that started it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from emuedit.operations.yield_ledger import Ledger
from emuedit.promotion.gate import Decision
from emuedit.tracking import registry
from flows.stage_outputs import SuccessTable


@dataclass(frozen=True)
class RetrainResult:
    """Result of a retrain."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stages that ran -> their seconds."""
    run_id: str = ""
    version: registry.ModelVersion | None = None
    is_new: bool = False
    """Whether this retrain registered the version."""
    decision: Decision | None = None
    table: SuccessTable = field(default_factory=dict)
    """System -> task -> edit success."""
    ledger: Ledger | None = None
    """Yield of each task; None if no pairs were filtered."""
    problem: str = ""
    """Why the registry did not take the model or the decision about it; empty if it did, or if the whole run waits for MLflow."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for Prefect."""
        return {
            "stages": dict(self.seconds),
            "run_id": self.run_id,
            "version": self.version.number if self.version else None,
            "new": self.is_new,
            "promoted": self.decision.promote if self.decision else None,
            "reason": self.decision.reason if self.decision else "",
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The result from `to_dict`, without the tags of the version, the table, the ledger and the problem."""
        version = registry.ModelVersion(values["version"], values["run_id"]) if values["version"] else None
        decision = Decision(bool(values["promoted"]), values["reason"]) if values["reason"] else None
        return cls(values["stages"], values["run_id"], version, values["new"], decision)
