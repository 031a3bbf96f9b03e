"""Upgrade the tables of MLflow's database to the installed MLflow: python -m emuedit.tracking.table_upgrade.

MLFLOW_BACKEND_STORE_URI names the database, as for the server. `mlflow db upgrade` takes the URI with its password as an
argument, which all users of a machine can read. The tables of an empty database are created.
"""

import os
import sys

URI_ENV = "MLFLOW_BACKEND_STORE_URI"


def main() -> int:
    """Returns the exit status."""
    uri = os.environ.get(URI_ENV)
    if not uri:
        print(f"table_upgrade: want the URI of a database in {URI_ENV}, got none; set it as for `mlflow server`", file=sys.stderr)
        return 2
    from mlflow.db import upgrade

    upgrade.callback(uri)
    return 0


if __name__ == "__main__":
    sys.exit(main())
