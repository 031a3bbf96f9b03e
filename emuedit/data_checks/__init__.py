"""Checks of the kept pairs before training: measurements, bounds and report."""
