"""The embedded world: scenes that can be drawn, described, edited and read back exactly, and models trained on them."""
