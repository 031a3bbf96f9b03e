"""How often the stage `captions` reads and checks the images and texts of its rows."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from emuedit.data import caption_sources, file_hashes
from emuedit.data.file_hashes import MEMORY_FILE
from emuedit.stages import captions
from emuedit.stages.captions import run
from tests.stages.test_caption_images import PIXELS, ROWS, encode, write_photos, write_table
from tests.stages.test_captions import make_params
from tests.stages.workspace import read_files


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a table of twelve images below a dep, one of them through a link, and one unreadable."""
    write_photos(tmp_path)
    rows: list[tuple[str, Any]] = [*ROWS, ("star", "star.jpg"), ("two rings", "link.png")]
    for number in range(8):
        (tmp_path / f"photos/{number}.png").write_bytes(encode(PIXELS[number:], "PNG"))
        rows.append((f"image number {number}", f"{number}.png"))
    (tmp_path / "photos/broken.jpg").write_bytes(encode(PIXELS, "JPEG")[:300])
    (tmp_path / "photos/link.png").symlink_to("ring.png")
    write_table(tmp_path, "photos/c.csv", [*rows, ("two stars", "broken.jpg")])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.fixture
def n_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is read to hash it."""
    counts, lock, read = Counter[str](), threading.Lock(), file_hashes._read

    def count(file: Path, digest_bytes: int, stop: threading.Event) -> str:
        with lock:
            counts[file.resolve().name] += 1
        return read(file, digest_bytes, stop)

    monkeypatch.setattr(file_hashes, "_read", count)
    return counts


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_each_image_is_read_once_for_its_hash_and_not_at_all_by_the_next_run(
    n_reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED_S", -3600.0)
    params = make_params("photos/c.csv", image_column="image")
    run(params, Path())
    files = [file.name for file in Path("photos").iterdir() if not file.is_symlink()]
    assert {name: n_reads[name] for name in files} == dict.fromkeys(files, 1)
    before = read_files(Path(captions.OUT))
    n_reads.clear()
    run(params, Path())
    assert not n_reads.keys() & set(files)
    assert read_files(Path(captions.OUT)) == before
    Path(MEMORY_FILE).unlink()
    run(params, Path())
    assert read_files(Path(captions.OUT)) == before


@pytest.mark.usefixtures("photos")
def test_new_files_are_read_once_in_a_run(n_reads: Counter[str]) -> None:
    """They are not yet remembered for the next run."""
    run(make_params("photos/c.csv", image_column="image"), Path())
    assert n_reads["star.jpg"] == n_reads["0.png"] == 1


@pytest.mark.usefixtures("photos")
def test_a_text_is_checked_once_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[Any] = []
    reason_to_drop = captions.reason_to_drop

    def record(text: str | None, params: captions.CaptionsParams) -> str | None:
        texts.append(text)
        return reason_to_drop(text, params)

    monkeypatch.setattr(captions, "reason_to_drop", record)
    counts = run(make_params("photos/c.csv", image_column="image"), Path()).counts
    assert len(texts) == counts["kept"] + counts["dropped"] == 15


def test_without_images_no_hashes_are_remembered(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a red star\n")
    run(make_params("c.txt"), tmp_path)
    assert not (tmp_path / MEMORY_FILE).exists()


def test_counting_the_rows_of_a_large_table_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMUEDIT_PROGRESS_SECONDS", "0.01")
    count_rows = caption_sources.count_rows

    def count_slowly(*arguments: Any) -> int | None:
        time.sleep(0.1)
        return count_rows(*arguments)

    monkeypatch.setattr(caption_sources, "count_rows", count_slowly)
    (tmp_path / "c.txt").write_text("a red star\n")
    run(make_params("c.txt"), tmp_path)
    assert "captions: count rows ..." in capsys.readouterr().err
