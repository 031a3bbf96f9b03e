"""Options of the command and the flow `retrain`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RetrainOptions:
    """What a retrain does besides running the stages that are out of date. The fields are the parameters of the flow."""

    registry: bool = True
    """Whether to register the model and let the promotion gate decide."""
    force: bool = False
    """Whether to run all stages."""
    max_parallel: int = 1
    """Number of stages that may run in parallel."""
    reason: str = ""
    """Why it runs, see `run_reason`."""
    push: bool = False
    """Whether to push the data to the remote afterwards."""
    branch: str = ""
    """Branch for commits of `dvc.lock` and metrics; empty: none."""

    @property
    def publishes(self) -> bool:
        """Whether it pushes data or commits to a branch, also if no stage is out of date."""
        return self.push or bool(self.branch)
