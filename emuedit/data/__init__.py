"""Records exchanged between stages; their storage, filters and visualisation; other dataset formats."""
