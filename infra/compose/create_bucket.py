"""Set up the bucket of EMUEDIT_BUCKET at the store of AWS_ENDPOINT_URL: versioning, and rules for what is left over."""

import os

from emuedit.operations.storage import bucket_setup
from emuedit.operations.storage.bucket import Bucket, RemoteLocation

if __name__ == "__main__":
    bucket = Bucket(RemoteLocation.parse(f"s3://{os.environ['EMUEDIT_BUCKET']}/emuedit", os.environ["AWS_ENDPOINT_URL"]))
    print("bucket created" if bucket_setup.create_bucket(bucket) else "bucket there already")
    bucket_setup.turn_on_versioning(bucket)
    bucket_setup.merge_lifecycle(bucket)
