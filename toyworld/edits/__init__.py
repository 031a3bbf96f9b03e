"""Toy edits with reference results: instructions, exact targets, benchmark, judge, and a rule-based LLM."""
