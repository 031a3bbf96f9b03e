"""Experiments of MLflow. One that was deleted keeps its name, so that no other can be created under it, and takes no runs."""

from emuedit.tracking.runs import client


def restore(name: str) -> bool:
    """Restore an experiment that was deleted, with its runs. Returns whether it was."""
    mlflow = client()
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "deleted":
        return False
    mlflow.restore_experiment(experiment.experiment_id)
    return True
