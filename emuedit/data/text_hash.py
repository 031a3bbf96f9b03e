"""A short hash of a text."""

import hashlib


def text_hash(text: bytes) -> int:
    """64-bit hash of a text in UTF-8."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
