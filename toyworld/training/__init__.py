"""Training of the toy models: one module per model, and a common training loop."""
