"""Which version is the champion: the comparison of two packages on the same edits, the gate, moves of the alias, lineage."""
