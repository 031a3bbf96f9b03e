"""Judges of generated pairs, which have no exact result: they read the scenes back from the images and compare them."""
