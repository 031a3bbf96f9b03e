"""The built-in toy world: scenes with an exact renderer, captions, edits, an oracle, and models trained on them."""
