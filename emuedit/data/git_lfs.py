"""Pointers of Git LFS: what a clone without `git lfs pull` holds in the place of large files."""

_HEAD = b"version https://git-lfs.github.com/spec/"
DESCRIPTION = "a pointer of Git LFS; run `git lfs pull`"


def is_pointer(content: bytes) -> bool:
    """Whether a file that begins with these bytes is a pointer."""
    return content.startswith(_HEAD)
