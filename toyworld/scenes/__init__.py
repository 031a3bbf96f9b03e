"""Toy scenes: what they are made of, how they are rendered, how captions describe them."""
