"""Painting a picture and its edit so that only what the instruction names differs."""
