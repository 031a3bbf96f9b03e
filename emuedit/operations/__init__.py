"""What the people who run the project need beside the pipeline: data in S3-compatible storage, and servers."""
