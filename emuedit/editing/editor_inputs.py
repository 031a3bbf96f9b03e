"""Checks of what users pass to `Editor`: images, instructions, tasks, settings."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from emuedit.data import image_io
from emuedit.data.image_io import Pixels
from emuedit.editing.edit_error import EditError
from emuedit.editor.settings import EditSettings

Picture = Image.Image | Pixels
"""A PIL image, or uint8 [H, W, 3]."""
MAX_CHARS = 10_000
"""Maximum length of an instruction: text encoders read some hundred characters, the task predictor all. Ours."""
_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = 120


def describe(value: Any) -> str:
    """The repr of a value in an error message, shortened to about 120 characters per text."""
    return _SHORT_REPR.repr(value)


def to_rgb(image: Picture) -> Pixels:
    """A PIL image or uint8 [H, W, 3] -> uint8 [H, W, 3]; transparency is composited on white, see `image_io.read_image`.

    An array is not copied; of a subclass, such as a masked array, the data are used. Raises what `check_image` raises, and
    ImageError for a damaged image.
    """
    check_image(image)
    return image_io.convert_to_rgb(image).pixels if isinstance(image, Image.Image) else np.asarray(image)


def check_image(image: Any) -> None:
    """Raise EditError unless it is a PIL image of 8 or 16 bits per value (the range of 32 bits is unknown), or uint8 [H, W, 3],
    with pixels."""
    is_picture = isinstance(image, Image.Image) and image.mode not in ("I", "F")
    is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not is_picture and not is_array:
        kind = " ".join(str(getattr(image, name)) for name in ("mode", "dtype", "shape") if hasattr(image, name))
        advice = "; pass list(images)" if isinstance(image, np.ndarray) and image.ndim == 4 else ""
        got = f"{type(image).__name__} {kind}".rstrip()
        raise EditError(f"want a PIL image of 8 or 16 bits per value, or uint8 [H, W, 3]; got {got}{advice}")
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    if not width or not height:
        raise EditError(f"want an image of at least one pixel, got {width} x {height}; pass an image with pixels")


def check_images(images: Any) -> Sequence[Picture]:
    """The images of a list. Raises EditError for anything else, such as a path, a generator or a tensor."""
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise EditError(
            f"want a PIL image, uint8 [H, W, 3], or a list of them; got {type(images).__name__} {describe(images)}; "
            "open files with PIL.Image.open"
        )
    return images


def check_instructions(instructions: Any) -> Sequence[str]:
    """The instructions of a list. Raises EditError if there is none, for other types, blank texts and those above MAX_CHARS."""
    if isinstance(instructions, str) or not isinstance(instructions, Sequence):
        kind = "the text" if isinstance(instructions, str) else type(instructions).__name__
        raise EditError(f"want a list of instructions, got {kind} {describe(instructions)}; pass a list")
    if not instructions or not all(isinstance(text, str) and text.strip() for text in instructions):
        raise EditError(f"want an instruction, such as 'make the circle red'; got {describe(list(instructions))}")
    for text in instructions:
        if len(text) > MAX_CHARS:
            raise EditError(f"want an instruction of at most {MAX_CHARS} characters, got {len(text)}; shorten it")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which tokenizers reject
            raise EditError(f"want a text of Unicode characters, got {describe(text)}: {error.reason}; remove them") from error
    return instructions


def check_tasks(tasks: Any, n: int) -> Sequence[str | None]:
    """A task, or None, for each of n instructions; None or an empty list: n times None. Raises EditError for other lengths."""
    if tasks is None:
        return [None] * n
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise EditError(f"want a list of tasks, got {type(tasks).__name__} {describe(tasks)}; pass a list or None")
    if tasks and len(tasks) != n:
        raise EditError(f"want a task for each of the {n} instructions or none; got {describe(list(tasks))}")
    return tasks or [None] * n


def check_settings(settings: Any, default: EditSettings) -> EditSettings:
    """The settings, or the default for None. Raises EditError for another type, such as a mapping."""
    if settings is None:
        return default
    if not isinstance(settings, EditSettings):
        raise EditError(
            f"want EditSettings, got {type(settings).__name__} {describe(settings)}; use EditSettings(...), or "
            "editor.settings.with_changes(...)"
        )
    return settings
