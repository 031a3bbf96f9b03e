"""Toy scenes: their random generation, their rendering with ground truth, and their captions."""
