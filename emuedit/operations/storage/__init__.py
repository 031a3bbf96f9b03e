"""Data in S3-compatible storage: the bucket, DVC's remote, published manifests, and what keeps data from being lost."""
