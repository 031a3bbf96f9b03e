"""Scorers of generated pairs, which have no exact result: the scene is read back from the pictures."""
