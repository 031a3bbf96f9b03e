"""Ground floor: pure functions on tensors. Nothing here opens a file, loads a weight or knows a model."""
