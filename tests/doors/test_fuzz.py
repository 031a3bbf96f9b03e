# ruff: noqa: E501, PT017  tables of cases; what a random input raises is not known before
"""Random input at the doors for pictures, tables and settings: whatever it is, only errors of this project come back.

`EMUEDIT_FUZZ_INPUTS` sets how many inputs of each kind are tried.
"""

import base64
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from emuedit import params_check
from emuedit.config import ParamsError
from emuedit.data import caption_sources, image_io
from emuedit.data.text_tables import BadRow
from emuedit.editor.settings import EditSettings, SettingsError
from tests.repository import PARAMS, ROOT

QUICK, LONG = 100, 1700
"""Inputs of each of the three kinds in the quick and in the long lane."""
N_QUICK = int(os.environ.get("EMUEDIT_FUZZ_INPUTS", QUICK))
N_LONG = int(os.environ.get("EMUEDIT_FUZZ_INPUTS", LONG))
RELAXED = {
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
}
both_lanes = pytest.mark.parametrize(
    "n_inputs",
    [pytest.param(N_QUICK, id="quick"), pytest.param(N_LONG, id="long", marks=[pytest.mark.long, pytest.mark.timeout(900)])],
)


def pictures() -> dict[str, bytes]:
    """A small picture in each format, with EXIF and resolution where there is a place for it."""
    pixels = (np.arange(24 * 16 * 3) % 251).astype(np.uint8).reshape(24, 16, 3)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    files = {}
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "PCX", "ICO", "SGI", "JPEG2000", "AVIF"):
        stream = io.BytesIO()
        options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else {}
        try:
            Image.fromarray(pixels).save(stream, kind, **options)
        except (OSError, KeyError, ValueError):  # this Pillow was built without it
            continue
        files[kind] = stream.getvalue()
    return files


@st.composite
def damaged(draw: st.DrawFn, originals: dict[str, bytes]) -> bytes:
    """One of these files with bytes changed, cut out, doubled or put in; or bytes of no file at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(originals[draw(st.sampled_from(sorted(originals)))])
    for _ in range(draw(st.integers(1, 6))):
        place, n_bytes = draw(st.integers(0, max(len(content) - 1, 0))), draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["change", "cut", "end", "put in", "double"]))
        if kind == "change":
            content[place : place + n_bytes] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "cut":
            del content[place : place + n_bytes]
        elif kind == "end":
            del content[place:]
        elif kind == "put in":
            content[place:place] = draw(st.binary(min_size=1, max_size=40))
        else:
            content[place:place] = content[place : place + n_bytes]
    return bytes(content)


PICTURES = pictures()


@pytest.mark.slow
@both_lanes
def test_pictures(n_inputs: int, tmp_path: Path) -> None:
    """What is read can be written in each format, with all that the file holds besides its pixels, and read again."""

    @settings(max_examples=n_inputs, **RELAXED)
    @given(damaged(PICTURES))
    def check(content: bytes) -> None:
        try:
            loaded = image_io.read_image(content)
        except image_io.ImageError:
            return
        assert loaded.pixels.dtype == np.uint8
        for suffix in (".png", ".jpg", ".webp", ".tif"):
            image_io.write_image(tmp_path / f"out{suffix}", loaded.pixels, loaded)
            assert image_io.read_image(tmp_path / f"out{suffix}").pixels.shape == loaded.pixels.shape

    check()


def tables() -> dict[str, bytes]:
    """A table of each kind."""
    rows: list[dict[str, Any]] = [
        {"caption": text, "n": number} for number, text in enumerate(["a star", "a café", "", None, 'a "ring"'])
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n"
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, compression="none")
    csv_lines = 'caption,n\na star,1\n"a ""ring""",2\n"a\ncross",3\n'
    return {
        ".txt": "a star\na café\n\n".encode(), ".csv": csv_lines.encode(), ".jsonl": lines.encode(), ".parquet": stream.getvalue(),
        ".16.csv": csv_lines.encode("utf-16"), ".bom.jsonl": lines.encode("utf-8-sig"),
    }  # fmt: skip


TABLES = tables()


@pytest.mark.slow
@both_lanes
def test_tables(n_inputs: int) -> None:
    @settings(max_examples=n_inputs, **RELAXED)
    @given(st.sampled_from(sorted(TABLES)), st.data())
    def check(suffix: str, data: st.DataObject) -> None:
        content = data.draw(damaged({suffix: TABLES[suffix]}))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"c{suffix}")
            path.write_bytes(content)
            try:
                batches = list(caption_sources.read_batches(path, path.name, "train", "caption", 100, 10))
            except ValueError as error:
                assert type(error).__module__.startswith("emuedit."), repr(error)
                return
        for text in (text for _, rows in batches for text in rows):
            assert text is None or isinstance(text, str | BadRow)
            stored = text.text if isinstance(text, BadRow) else text
            assert pa.array([stored], pa.string())[0].as_py() == stored, "a stage can write it to a shard"

    check()


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-5, 5), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.binary(max_size=4), st.dates(),
)  # fmt: skip


@pytest.mark.slow
@both_lanes
def test_settings_of_edits(n_inputs: int) -> None:
    names = st.one_of(st.sampled_from(sorted(EditSettings.model_fields)), st.text(max_size=10))

    @settings(max_examples=n_inputs, **RELAXED)
    @given(st.dictionaries(names, VALUES, max_size=4))
    def check(changes: dict[str, Any]) -> None:
        try:
            changed = EditSettings().with_changes(changes)
        except SettingsError:
            return
        assert 1 <= changed.steps <= 1000
        assert 0 <= changed.preserve <= 1

    check()


def places(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of a mapping, at every depth."""
    for key, value in values.items() if isinstance(values, dict) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.slow
@both_lanes
def test_params(n_inputs: int, tmp_path: Path) -> None:
    import yaml

    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    all_places = sorted(places(PARAMS))

    @settings(max_examples=max(n_inputs // 4, 25), **RELAXED)  # each reads ten sections
    @given(st.sampled_from(all_places), VALUES, st.sampled_from(["replace", "remove", "rename", "cut"]), st.integers(0, 5000))
    def check(place: tuple[str, ...], value: Any, kind: str, n_bytes: int) -> None:
        params = json.loads(json.dumps(PARAMS))
        section = params
        for key in place[:-1]:
            section = section[key]
        if kind == "replace":
            section[place[-1]] = value
        else:
            old = section.pop(place[-1])
            section |= {place[-1][::-1]: old} if kind == "rename" else {}
        text = yaml.safe_dump(params, allow_unicode=True)
        (tmp_path / "params.yaml").write_bytes(text.encode("utf-8", "replace")[: n_bytes if kind == "cut" else None])
        try:
            params_check.check(tmp_path)
        except ParamsError as error:
            assert str(error)

    check()


@pytest.mark.slow
@both_lanes
def test_base64(n_inputs: int) -> None:
    from flows.pyfunc_model import _decode

    png = image_io.to_png(np.zeros((8, 8, 3), np.uint8))
    texts = st.one_of(st.text(), st.binary().map(lambda raw: base64.b64encode(raw).decode()), st.none(), st.floats())

    @settings(max_examples=n_inputs, **RELAXED)
    @given(texts)
    def check(text: Any) -> None:
        try:
            assert isinstance(_decode(text), bytes)
        except ValueError as error:
            assert "want the bytes of an image file in base64" in str(error)

    check()
    for text in (
        base64.encodebytes(png),
        base64.urlsafe_b64encode(png),
        base64.b64encode(png) + b"\n",
        base64.b64encode(png).rstrip(b"="),
    ):
        assert _decode(text.decode()) == png
    assert _decode("data:image/png;base64," + base64.b64encode(png).decode()) == png
