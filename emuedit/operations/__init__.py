"""What the people who run the project need beside the pipeline: storage, servers, health checks, and the yield ledger."""
