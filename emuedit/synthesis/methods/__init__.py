"""Published editing methods, written for the same base models: candidates beside ours, and baselines to compare with."""
