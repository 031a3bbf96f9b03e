"""Optimizers, learning-rate schedules and the moving average of the weights, for the editor and every other model."""
