"""Evaluation of edits: benchmarks, systems under comparison, scores and reports."""
