# ruff: noqa: E501, PT017  tables of cases; what a random input raises is not known before
"""Random images, instructions, tasks and settings for `Editor.edit` and `edit_turns`: an edit, or an error of this project."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emuedit import EditError, Editor, EditSettings
from emuedit.data.image_io import ImageError
from emuedit.editing.api import TruncatedInstructionWarning
from emuedit.editing.editor_inputs import check_images, check_instructions, check_settings, check_tasks, describe, to_rgb
from emuedit.editor import sampling
from emuedit.editor.settings import SettingsError
from tests.editor.tiny_pipelines import save_editor
from tests.red_editor import WordPredictor

QUICK, LONG = 300, 2000
N_QUICK = int(os.environ.get("EMUEDIT_FUZZ_INPUTS", QUICK))
FAST = {"steps": 1, "guidance_scale": 1.0, "image_guidance_scale": 1.0, "resolution": 24}
MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16L", "I;16B", "I;16N",
    "I", "F",
)  # fmt: skip
SIZES = ((1, 1), (1, 7), (7, 1), (2, 3), (8, 8), (9, 13), (40, 24), (1, 300), (300, 1), (31, 64), (0, 5), (5, 0), (0, 0))
"""(W, H) in px."""
LARGE_SIZES = ((1, 4000), (4000, 1), (3, 1500), (200, 301))
DTYPES = ("uint8", "int8", "uint16", "int64", "float16", "float32", "float64", "bool", "complex64", "object", "U3")
TEXTS = (
    "make it red", "remove the star", "", "  ", "\n\t", "\x00", "\x00\x01\x1b[31m red", "\u200b", "\u202e der", "🟥" * 30, "👩‍👩‍👧‍👦 add",
    "a" * 10_000, "word " * 2_000, "\ud800", "red \udfff", "</s>", "<|endoftext|>", "<pad>", "é" * 40, "红色", "{}", "%s %d", "../in.png",
    "make\r\nit\r\nred", "\ufeffred", np.str_("make it red"), None, 5, float("nan"), b"make it red", ["make it red"], True,
)  # fmt: skip
VALID_TEXTS = TEXTS[:2] * 8 + ("\x00\x01\x1b[31m red", "\u200b", "🟥" * 30, "a" * 10_000, "</s>", np.str_("make it red"))
TASKS = (
    None, "local", "style", "background", "sketch", "remove", "LOCAL", "", "dance", 3, b"local", ["local"], float("nan"), "a" * 9999,
)  # fmt: skip
SETTINGS: dict[str, tuple[Any, ...]] = {
    "steps": (1, 2, 3, 0, -1, 1001, 1.5, "2", None), "seed": (0, 7, 2**63 - 1, 2**63, -1, 0.5),
    "image_guidance_scale": (0, 1, 1.5, 100, -0.1, 101, float("nan"), float("inf")),
    "guidance_scale": (0, 1, 5.0, 100, -1, 1e9, float("nan"), -float("inf")), "guidance_from": (0, 0.5, 1, 1.1),
    "guidance_to": (0, 0.5, 1, -0.1), "guidance_rescale": (0, 0.7, 1, 2), "preserve": (0, 0.5, 1, -1, float("nan")),
    "composite": (0, 1, 2, True), "change_threshold": (0, 0.03, 3, 3.1, "much"), "against_reconstruction": (0, 1, -1),
    "resolution": (0, 1, 2, 16, 64, 16385, -1), "crop": (0, 1, 2), "stepz": (1,),
}  # fmt: skip
ALLOWED = (EditError, ImageError, SettingsError)


def choose(random: np.random.Generator, values: Any) -> Any:
    return values[int(random.integers(len(values)))]


def make_array(random: np.random.Generator, width: int, height: int) -> Any:
    """An array of a usual shape and type, or of an odd one: other channels or dimensions, strides, byte orders, subclasses."""
    array = random.integers(0, 256, (height, width, 3), np.uint8)
    kind = choose(
        random, ("plain", "plain", "reversed", "transposed", "strided", "read-only", "shape", "dtype", "masked", "empty")
    )
    if kind == "reversed":
        return array[::-1, ::-1, ::-1]
    if kind == "transposed":
        return random.integers(0, 256, (3, width, height), np.uint8).T
    if kind == "strided":
        return random.integers(0, 256, (2 * height, 3 * width, 3), np.uint8)[::2, ::3]
    if kind == "read-only":
        array.setflags(write=False)
    if kind == "shape" and array.size:
        return choose(random, (array[0], array[..., 0], array[None], array[..., :2], np.dstack([array, array]), array.ravel()))
    if kind == "dtype":
        with np.errstate(invalid="ignore"):
            return array.astype(choose(random, DTYPES))
    if kind == "masked":
        return np.ma.masked_greater(array, 99)
    return np.zeros(choose(random, ((0,), (0, 0, 3), (4, 4, 0), ())), np.uint8) if kind == "empty" else array


def make_image(random: np.random.Generator, sizes: Any) -> Any:
    width, height = choose(random, sizes)
    kind = random.random()
    if kind < 0.45:
        empty = Image.new(choose(random, MODES), (width, height))
        return Image.frombytes(empty.mode, empty.size, random.bytes(len(empty.tobytes()))) if width * height else empty
    if kind < 0.5:
        return Image.fromarray(random.integers(0, 256, (height, width, 4), np.uint8), "RGBA") if width * height else None
    if kind < 0.9:
        return make_array(random, width, height)
    others: tuple[Any, ...] = (
        None, "in.png", b"\x89PNG", 5, float("nan"), [], {}, Path("in.png"), torch.zeros(3, 4, 4), object(), [None], iter(()), np.uint8(3),
    )  # fmt: skip
    return choose(random, others)


def is_valid(image: Any) -> bool:
    try:
        to_rgb(image)
    except ALLOWED:
        return False
    return True


def make_settings(random: np.random.Generator) -> Any:
    """Settings, None, or another type. Raises SettingsError for values out of bounds."""
    if random.random() < 0.05:
        return choose(random, ({}, {"steps": 1}, "fast", 5, EditSettings))
    names = [choose(random, sorted(SETTINGS)) for _ in range(random.integers(4))]
    changes = {name: choose(random, SETTINGS[name][: 2 if random.random() < 0.7 else None]) for name in names if name}
    return EditSettings().with_changes(FAST | changes)


def try_once(editor: Editor, seed: int, sizes: Any) -> bool:
    """One random call, checked. Whether it gave an edit."""
    random = np.random.default_rng(seed)
    kind = choose(random, ("one", "one", "list", "list", "turns", "odd list"))
    n = int(random.integers(0 if kind == "odd list" else 1, 4))
    good = random.random(3) < 0.7  # images, texts and tasks, else almost every call fails by one of its parts
    images = [make_image(random, sizes) for _ in range(n)]
    if good[0]:
        images = [image for image in images if is_valid(image)] or [Image.new("RGB", (9, 8), "red")]
        n = len(images)
    texts = [choose(random, VALID_TEXTS if good[1] else TEXTS) for _ in range(n)]
    tasks = [choose(random, TASKS[: 6 if good[2] else None]) for _ in range(n)]
    try:
        settings = make_settings(random)
        if kind == "one":
            results = [editor.edit(images[0], texts[0], tasks[0], settings)]
            images = images[:1]
        elif kind == "list":
            results = editor.edit(images, texts, tasks, settings)
        elif kind == "turns":
            turns = editor.edit_turns(images[0], texts, choose(random, (tasks, None, [])), settings)
            images, results = images[:1] * n, [turn.pixels for turn in turns]
            for turn in turns:
                np.testing.assert_array_equal(turn.pixels[~turn.mask], turn.before[~turn.mask])
                assert turn.changed.share == turn.mask.mean()
        else:
            wrong: tuple[Any, ...] = (images, texts, tasks, None, [], (), {}, "abc", iter(texts), set(), np.zeros(3), 7)
            results = editor.edit(choose(random, wrong), choose(random, wrong), choose(random, wrong), settings)
            return True
    except ALLOWED as error:
        assert 10 < len(str(error)) < 1000, f"{len(str(error))} characters: {str(error)[:200]}"
        assert any(word in str(error) for word in ("want ", "Input should", "damaged")), str(error)
        return False
    assert len(results) == len(images)
    for image, result in zip(images, results, strict=True):
        pixels = np.asarray(result)
        assert pixels.dtype == np.uint8
        size = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
        assert pixels.shape == (size[1], size[0], 3)
        assert kind == "turns" or isinstance(result, Image.Image) == isinstance(image, Image.Image)
    return True


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    sampler = sampling.load(save_editor("toy", tmp_path_factory.mktemp("editor") / "editor"))
    return Editor(sampler, WordPredictor(), EditSettings().with_changes(FAST))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.filterwarnings(f"ignore::{TruncatedInstructionWarning.__module__}.{TruncatedInstructionWarning.__name__}")
@pytest.mark.parametrize(
    ("n_inputs", "sizes"),
    [
        pytest.param(N_QUICK, SIZES, id="quick"),
        pytest.param(LONG, SIZES + LARGE_SIZES, id="long", marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
def test_edits(n_inputs: int, sizes: Any, editor: Editor) -> None:
    n_edits = 0
    for seed in range(n_inputs):
        try:
            n_edits += try_once(editor, seed, sizes)
        except Exception as error:
            error.add_note(f"input of seed {seed}")
            raise
    assert 0.1 * n_inputs < n_edits < 0.9 * n_inputs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(12, 9), (1, 40), (40, 1)])
def test_a_mode_of_pillow_is_edited_or_refused(mode: str, size: tuple[int, int], editor: Editor) -> None:
    image = Image.new(mode, size)
    if mode in ("I", "F"):
        with pytest.raises(EditError, match=rf"want a PIL image of 8 or 16 bits per value, .*; got Image {mode}$"):
            editor.edit(image, "a", "local")
    else:
        assert editor.edit(image, "a", "local").size == size


CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "a path for an image": (lambda: check_images("in.png"), "want a PIL image, .* got str 'in.png'; open files with"),
    "no image": (lambda: check_images(None), "want a PIL image, .* got NoneType None"),
    "a generator": (lambda: check_instructions(iter(["a"])), "want a list of instructions, got list_iterator .*; pass a list"),
    "half a surrogate pair": (
        lambda: check_instructions(["\ud800"]),
        r"want a text of Unicode characters, got '\\ud800'.*remove",
    ),
    "a task for all": (lambda: check_tasks("local", 5), "want a list of tasks, got str 'local'; pass a list"),
    "a number of tasks": (lambda: check_tasks(3, 1), "want a list of tasks, got int 3"),
    "a mapping": (
        lambda: check_settings({"steps": 1}, EditSettings()),
        r"want EditSettings, got dict {'steps': 1}; use .*with_changes",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_argument_is_named(case: str) -> None:
    call, message = CASES[case]
    with pytest.raises(EditError, match=message):
        call()


@pytest.mark.slow
def test_a_read_only_array_is_edited_without_a_warning(editor: Editor) -> None:
    """torch warns of it once per process, which is an error here."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    want = editor.edit_turns(picture, ["a"], ["local"])[0].pixels
    picture.setflags(write=False)
    torch.set_warn_always(True)
    try:
        np.testing.assert_array_equal(editor.edit_turns(picture, ["a"], ["local"])[0].pixels, want)
        np.testing.assert_array_equal(editor.edit(picture[::-1], "a", "local"), editor.edit(picture[::-1].copy(), "a", "local"))
    finally:
        torch.set_warn_always(False)


def test_the_data_of_a_masked_array_are_edited(editor: Editor) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    (turn,), (want,) = (editor.edit_turns(image, ["a"], ["local"]) for image in (np.ma.masked_greater_equal(picture, 0), picture))
    assert turn.changed == want.changed
    assert type(turn.before) is type(turn.mask) is np.ndarray
    np.testing.assert_array_equal(turn.pixels, want.pixels)


def test_long_values_are_shortened() -> None:
    assert len(describe("a" * 10_000)) < 130
    assert len(describe(["a" * 10_000] * 100)) < 1000
    assert describe(["make it red"]) == "['make it red']"
