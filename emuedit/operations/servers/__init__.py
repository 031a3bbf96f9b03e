"""The servers of one machine: PostgreSQL, MLflow, Prefect and an S3 store; their start, state and end."""
