"""The pipeline's stages: each file is a stage of `dvc.yaml` and a section of `params.yaml` of the same name."""
