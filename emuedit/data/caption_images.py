"""The images that captions describe: files beside a table, or images in the rows of a dataset, which are written to files.

Records refer to an image by its file and hash. Its bytes are read here once, to check them, and again where they are used.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emuedit.data import image_io
from emuedit.data.atomic_file import replacing
from emuedit.data.file_hashes import MISSING, HashMemory, hash_all
from emuedit.data.image_io import ImageError
from emuedit.data.text_hash import hex_hash
from emuedit.data.text_tables import BadRow
from emuedit.data.threads import map_in_threads

_STORED = "image-"
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_ARCHIVES = ("zip", "tar", "gzip")
_MAX_BYTES = 2**28
"""Maximum size of a file in an archive or on the hub; uncompressed RGB of `image_io.MAX_PIXELS` has less."""


class CaptionImageError(ValueError):
    """Raised for an image that a dataset names and that cannot be read, and for one that is not below a dep of the stage, so that
    a change of the image would not be noticed."""


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
    memory: HashMemory | None = None
    """Of the hashes of files that are not in `scratch`."""
    _prefixes: tuple[str, ...] = field(default=(), init=False, repr=False)
    """Of the paths of files below `dependencies`."""
    _readable: set[str] = field(default_factory=set, repr=False)
    """Hashes of the contents that were decoded without an error."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.root.resolve())
        object.__setattr__(self, "dependencies", tuple(folder.resolve() for folder in self.dependencies))
        object.__setattr__(self, "_prefixes", tuple(f"{str(folder).rstrip(os.sep)}{os.sep}" for folder in self.dependencies))

    def file_of(self, value: Any, caption: str) -> Path | BadRow:
        """The file of a row's image: a path relative to the source, or a struct {bytes, path} as `datasets` stores images.

        If the struct has only the path of a file in an archive or on the hub, the file is read; raises CaptionImageError if that
        fails, and for an archive on this machine that is not below a dep.
        """
        content, name = value, value
        if isinstance(value, Mapping):
            content, name = value.get("bytes"), value.get("path")
            if not content and isinstance(name, str) and "://" in name:
                try:
                    content = _read_streamed(self._pinned(name))
                except FileNotFoundError:
                    return BadRow.of("no_image", f"{caption}: {name}")
                if len(content) > _MAX_BYTES:
                    return BadRow.of("unreadable_image", f"{caption}: want at most {_MAX_BYTES} bytes, got more in {name}")
                name = name.split("::")[0]
        if isinstance(content, bytes) and content:
            digest = hex_hash(content)
            suffix = Path(name).suffix if isinstance(name, str) else ""
            path = self.scratch / f"{_STORED}{digest}{suffix if _SUFFIX.fullmatch(suffix) else ''}"
            if not path.exists():
                with replacing(path) as partial:
                    partial.write_bytes(content)
            return path
        if isinstance(name, str) and name.strip():
            return (self.source if self.source.is_dir() else self.source.parent) / name
        return BadRow.of("no_image", caption)

    def check(
        self, rows: Sequence[tuple[str, Path]], is_needed: Callable[[str, str], bool], advance: Callable[[int], None]
    ) -> list[ImageReference | BadRow]:
        """For each row (caption, file): the reference to the file, or a bad row if it is missing or not a readable image.

        Files are hashed and decoded in threads; each content is decoded once, unless `is_needed` is false for all its captions
        and hash (of a duplicate, say). advance: called with the number of rows that are finished.
        Raises CaptionImageError for a file that is not below a dep of the stage.
        """
        references = self._refer_to(list(dict.fromkeys(file for _, file in rows)))
        file_of_content: dict[str, Path] = {}
        for caption, file in rows:
            reference = references[file]
            if reference is not None and reference.hash not in self._readable and is_needed(caption, reference.hash):
                file_of_content.setdefault(reference.hash, file)
        advance(len(rows) - len(file_of_content))
        errors = dict[str, ImageError]()
        for digest, error in zip(file_of_content, map_in_threads(_find_error, file_of_content.values()), strict=True):
            if error is None:
                self._readable.add(digest)
            else:
                errors[digest] = error
            advance(1)
        return [_checked(caption, file, references[file], errors) for caption, file in rows]

    def _refer_to(self, files: Sequence[Path]) -> dict[Path, ImageReference | None]:
        """File -> its reference; None if there is no such file."""
        present = [file for file, is_present in zip(files, map_in_threads(_is_file, files), strict=True) if is_present]
        stored = [file for file in present if file.parent == self.scratch]
        others = [file for file in present if file.parent != self.scratch]
        resolved = list(map_in_threads(self._resolve, others))
        names = [f"{self.out}/{file.name}" for file in stored] + [self._relative(path) for path in resolved]
        hashes = hash_all(stored) + hash_all(resolved, memory=self.memory)
        references = {
            file: ImageReference(name, content)
            for file, name, content in zip(stored + others, names, hashes, strict=True)
            if content != MISSING
        }
        return {file: references.get(file) for file in files}

    def _resolve(self, file: Path) -> Path:
        """The absolute path without links. Raises CaptionImageError if it is not below a dep."""
        path = Path(os.path.realpath(file))
        if not str(path).startswith(self._prefixes) and path not in self.dependencies:
            raise CaptionImageError(
                f"want the images of {self.source} below a dep of the stage captions, got {file}; add their folder to the deps "
                "of captions in dvc.yaml, so that a changed image is noticed"
            )
        return path

    def _pinned(self, address: str) -> str:
        """The address of a file on the hub (hf://datasets/...), or in an archive there or below a dep (zip://0.png::/x/train.zip).

        The archive's path has no links. Raises FileNotFoundError for any other address: what it names may change unnoticed, and
        whoever made the dataset may have chosen it. Raises CaptionImageError for an archive that is not below a dep.
        """
        *members, last = address.split("::")
        if not all(member.partition("://")[0] in _ARCHIVES for member in members):
            raise FileNotFoundError(address)
        if last.startswith("hf://"):
            return address
        if not _is_file(Path(last)):
            raise FileNotFoundError(address)
        return "::".join([*members, str(self._resolve(Path(last)))])

    def remove_unused(self, files: set[str]) -> None:
        """Delete the stored images that are not among these files of references."""
        for path in self.scratch.glob(f"{_STORED}*"):
            if f"{self.out}/{path.name}" not in files:
                path.unlink()

    def _relative(self, path: Path) -> str:
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()


def _read_streamed(name: str) -> bytes:
    """The first _MAX_BYTES + 1 bytes of a file."""
    from datasets.utils.file_utils import xopen

    try:
        with xopen(name, "rb") as stream:
            content: bytes = stream.read(_MAX_BYTES + 1)
            return content
    except FileNotFoundError:
        raise
    except Exception as error:  # of the network, the hub, or a damaged archive: a dozen classes
        raise CaptionImageError(
            f"want the image {name}, got none that can be read: {error}; run this again, or check it"
        ) from error


def _find_error(file: Path) -> ImageError | None:
    """The error of an image that `image_io.read_image` refuses."""
    try:
        image_io.check_image(file)
    except ImageError as error:
        return error
    return None


def _checked(
    caption: str, file: Path, reference: ImageReference | None, errors: Mapping[str, ImageError]
) -> ImageReference | BadRow:
    """The reference, or the bad row of a file that is missing or whose hash is among the errors."""
    if reference is None:
        return BadRow.of("no_image", f"{caption}: {file}")
    if reference.hash in errors:
        return BadRow.of("unreadable_image", f"{caption}: {errors[reference.hash]}")
    return reference


def _is_file(path: Path) -> bool:
    """Whether there is a file; no error for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, a NUL character
        return False
