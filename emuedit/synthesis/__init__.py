"""Synthesis of pairs: generate an image and an edited version that differ only in what the instruction names."""
