"""The images that captions describe: files beside a table, or images in the rows of a dataset, which are written to files.

Records refer to an image by its file and hash. Its bytes are read here once, to check them, and again where they are used.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emuedit.data import image_io
from emuedit.data.atomic_file import replacing
from emuedit.data.dependencies import hash_file
from emuedit.data.image_io import ImageError
from emuedit.data.text_tables import BadRow

_STORED = "image-"


class CaptionImageError(ValueError):
    """Raised for an image that is not below a dep of the stage, so that a change of the image would not be noticed."""


@dataclass(frozen=True)
class ImageReference:
    """An image as records refer to it."""

    file: str
    """Relative to the project's folder if below it."""
    hash: str
    """blake2b (16 hex digits) of the file."""


@dataclass(frozen=True)
class CaptionImages:
    """The images of a caption source. Those in the rows of a dataset are written to `scratch`, which is published as `out`."""

    column: str
    source: Path
    root: Path
    scratch: Path
    out: str
    dependencies: Sequence[Path]
    """Deps of the stage: images must be below one of them."""

    def file_of(self, value: Any, caption: str) -> Path | BadRow:
        """The file of a row's image: a path relative to the source, or a struct {bytes, path} as `datasets` stores images."""
        content, name = value, value
        if isinstance(value, Mapping):
            content, name = value.get("bytes"), value.get("path")
        if isinstance(content, bytes) and content:
            digest = hashlib.blake2b(content, digest_size=8).hexdigest()
            path = self.scratch / f"{_STORED}{digest}{Path(name).suffix if isinstance(name, str) else ''}"
            if not path.exists():
                with replacing(path) as partial:
                    partial.write_bytes(content)
            return path
        if isinstance(name, str) and name.strip():
            return (self.source if self.source.is_dir() else self.source.parent) / name
        return BadRow.of("no_image", caption)

    def check(self, file: Path, caption: str) -> ImageReference | BadRow:
        """The reference to a file, or a bad row if it is missing or not a readable image.

        Raises CaptionImageError for a file that is not below a dep of the stage.
        """
        if not _is_file(file):
            return BadRow.of("no_image", f"{caption}: {file}")
        is_stored = file.parent == self.scratch
        if not is_stored and not any(file.resolve().is_relative_to(folder.resolve()) for folder in self.dependencies):
            raise CaptionImageError(
                f"want the images of {self.source} below a dep of the stage captions, got {file}; add their folder to the deps "
                "of captions in dvc.yaml, so that a changed image is noticed"
            )
        try:
            image_io.read_image(file)
        except ImageError as error:
            return BadRow.of("unreadable_image", f"{caption}: {error}")
        return ImageReference(f"{self.out}/{file.name}" if is_stored else self._relative(file), hash_file(file))

    def remove_unused(self, files: set[str]) -> None:
        """Delete the stored images that are not among these files of references."""
        for path in self.scratch.glob(f"{_STORED}*"):
            if f"{self.out}/{path.name}" not in files:
                path.unlink()

    def _relative(self, file: Path) -> str:
        path, root = file.resolve(), self.root.resolve()
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _is_file(path: Path) -> bool:
    """Whether there is a file; no error for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, a NUL character
        return False
