"""Records that travel between stages, how they are stored, filtered and shown, and datasets in other formats."""
