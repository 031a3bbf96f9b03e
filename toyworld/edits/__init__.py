"""Toy edits: instructions, exact results, and a judge that compares with them."""
