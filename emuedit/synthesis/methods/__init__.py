"""Published editing methods for the same base models: further candidates, and baselines."""
