"""When, where, again and who is told. What depends on what stands in `dvc.yaml`; how it is done stands in `emuedit`."""
