"""When and where the pipeline runs. `dvc.yaml` says what depends on what, and `emuedit` how it is done."""
