"""Judges of generated pairs, which have no exact result: recover the scenes from the images and compare them."""
