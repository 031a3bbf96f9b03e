"""Pair datasets as others publish them, a file a layout; how they are read into pairs, and how ours are written for others."""

NAMES = ("instructpix2pix", "magicbrush", "ultraedit", "emuedit")
"""Every layout: the module of this package that describes it."""
