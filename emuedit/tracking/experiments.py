"""Experiments of MLflow. A deleted one accepts no runs, but its name cannot be used for a new one."""

from emuedit.tracking.runs import client


def restore(name: str) -> bool:
    """Restore a deleted experiment with its runs. Returns whether it was deleted."""
    mlflow = client()
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "deleted":
        return False
    mlflow.restore_experiment(experiment.experiment_id)
    return True
