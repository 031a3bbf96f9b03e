"""The one thin door to MLflow: what stations write down (`stats`), runs of flows (`runs`), registered models (`registry`)."""

from emuedit.tracking.stats import Tracker, read_stats, replay

__all__ = ["Tracker", "read_stats", "replay"]
