"""Published editing methods, for the same base models: additional candidates, and baselines to compare with."""
