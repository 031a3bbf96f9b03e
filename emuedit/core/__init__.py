"""The lowest layer: pure functions on tensors and numbers. They do not open files or depend on models."""
