"""Training of the toy models: one module per model, and one training loop that all of them share."""
