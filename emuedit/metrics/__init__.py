"""Evaluation of edits: benchmarks, the systems that are compared, scores and reports."""
