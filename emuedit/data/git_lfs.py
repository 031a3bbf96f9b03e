"""Git LFS pointers: placeholders of large files in a clone without `git lfs pull`."""

_HEAD = b"version https://git-lfs.github.com/spec/"
DESCRIPTION = "a Git LFS pointer; run `git lfs pull`"


def is_pointer(content: bytes) -> bool:
    """Whether a file that starts with these bytes is a pointer."""
    return content.startswith(_HEAD)
