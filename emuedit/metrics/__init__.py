"""How edits are measured: benchmarks, scores, baselines and reports."""
