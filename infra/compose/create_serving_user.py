"""Create the user `serving` in MLflow at MLFLOW_TRACKING_URI, or set its password: MLFLOW_SERVING_PASSWORD.

MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are those of an administrator. The user is none, so it has the default
permission of the server: READ in basic_auth.ini.
"""

import os
import sys

from mlflow.exceptions import RestException
from mlflow.server import get_app_client

USER = "serving"


def main() -> None:
    """Raises SystemExit without a password, RestException if the server refuses the account or the password."""
    password = os.environ.get("MLFLOW_SERVING_PASSWORD")
    if not password:
        sys.exit("want the password of the user serving in MLFLOW_SERVING_PASSWORD, got none; set it")
    client = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    try:
        client.get_user(USER)
    except RestException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_user(USER, password)
        print(f"created the user {USER}")
    else:
        client.update_user_password(USER, password)
        print(f"set the password of the user {USER}")


if __name__ == "__main__":
    main()
