"""Synthesis of pairs: generate an image and an edited version that differ only as described by the instruction."""
