"""Toy edits with known results: instructions, exact targets, the benchmark and its judge, and a rule-based LLM."""
