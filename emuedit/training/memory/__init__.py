"""The memory and the FLOPs of a training, computed before it starts."""
