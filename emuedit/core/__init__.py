"""The lowest layer: pure functions on tensors and numbers. Nothing here opens a file or depends on a model."""
