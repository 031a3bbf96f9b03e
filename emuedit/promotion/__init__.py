"""Promotion of versions to champion: comparison of two packages on the same edits, the gate, moves of the alias, lineage."""
