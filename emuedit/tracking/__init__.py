"""Experiment tracking, the only code of emuedit that imports MLflow: metrics of stages, runs of flows, the registry.

`mlflow_client` connects, `stats` writes metrics, `runs` logs runs of flows, `registry` registers models.
"""

from emuedit.tracking.stats import Tracker, read_stats, replay

__all__ = ["Tracker", "read_stats", "replay"]
