"""Short hashes: blake2b with 64 bits."""

import hashlib


def text_hash(text: bytes) -> int:
    """64-bit hash of a text in UTF-8."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def hex_hash(content: bytes) -> str:
    """64-bit hash of any content, as 16 hex digits."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
