# ruff: noqa: E501  one case, one line
"""Doors of captions in the folder of a dataset, as `datasets` saves it or as people lay files out: what is kept, or what is said."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image

from tests.doors.test_tables import read

CAPTIONS = ["a red star", "a ring", "a cross"]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n"
CSV = "caption\na red star\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # datasets leaves files open
]


def dataset() -> Dataset:
    return Dataset.from_dict({"caption": CAPTIONS})


def saved(folder: Path) -> Path:
    """The file with the rows of a saved dataset."""
    dataset().save_to_disk(folder)
    return next(folder.glob("*.arrow"))


def write(folder: Path, **files: str | bytes) -> None:
    """Files by their names; `__` in a name is a dot."""
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content.encode() if isinstance(content, str) else content)


def change_json(file: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def save_without_state(folder: Path) -> None:
    saved(folder)
    (folder / "state.json").write_text("{")


def save_with_new_feature(folder: Path) -> None:
    """As a newer version of datasets wrote it."""
    saved(folder)
    change_json(folder / "dataset_info.json", lambda info: info["features"].update(caption={"_type": "NewFeature"}))


def save_pictures_with_captions(folder: Path) -> None:
    for number in range(2):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    write(folder, metadata__csv="file_name,caption\n0.png,a red star\n1.png,a ring\n")


def save_tar(folder: Path) -> None:
    with tarfile.open(folder / "train-0.tar", "w") as archive:
        entry = tarfile.TarInfo("0.txt")
        entry.size = 10
        archive.addfile(entry, io.BytesIO(b"a red star"))


def save_parquet_and_nothing(folder: Path) -> None:
    dataset().to_parquet(folder / "train-00000-of-00002.parquet")
    (folder / "train-00001-of-00002.parquet").touch()


def save_cut_parquet(folder: Path) -> None:
    dataset().to_parquet(file := folder / "train.parquet")
    cut(file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


CONFIGS = "---\nconfigs:\n- {config_name: a, data_files: a.csv}\n- {config_name: b, data_files: b.csv}\n---\n"
TYPES = "".join(json.dumps({"caption": value}) + "\n" for value in ("a red star", 5, {"a": 1}))

# name -> (makes the folder, captions that are kept, drops by reason)
GOOD: dict[str, tuple[Callable[[Path], object], list[str], dict[str, int]]] = {
    "saved": (saved, CAPTIONS, {}),
    "saved with splits": (lambda folder: DatasetDict(train=dataset(), test=dataset()).save_to_disk(folder), CAPTIONS, {}),
    "pictures with metadata.csv": (save_pictures_with_captions, ["a red star", "a ring"], {}),
    "a compressed CSV": (lambda folder: write(folder, train__csv__gz=gzip.compress(CSV.encode())), ["a red star"], {}),
    "another column in a later file": (
        lambda folder: write(folder, a__csv=CSV, b__csv="text\na ring\n"),
        ["a red star"],
        {"no_column": 1},
    ),
    "a column of several types": (lambda folder: write(folder, train__jsonl=TYPES), ["a red star"], {"not_text": 2}),
}
# name -> (makes the folder, what must be said)
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "saved without the split": (lambda folder: DatasetDict(test=dataset()).save_to_disk(folder), r"want the split 'train' .*\['test'\]; name one of them in captions.split"),
    "a file of another split": (lambda folder: write(folder, test__csv=CSV), r"want the split 'train' .*\['test'\]; name one of them in captions.split"),
    "two configurations": (lambda folder: write(folder, a__csv=CSV, b__csv=CSV, README__md=CONFIGS), r"\['a', 'b'\](.|\n)*; name the files of one of them in captions"),
    "saved, rows cut": (lambda folder: cut(saved(folder)), r"want the split 'train' of the dataset .*, got none: Expected to read"),
    "saved, rows empty": (lambda folder: saved(folder).write_bytes(b""), r"want the split 'train' of the dataset .*, got none"),
    "saved, rows missing": (lambda folder: saved(folder).unlink(), r"No such file or directory: .*\.arrow"),
    "saved, rows of Git LFS": (lambda folder: saved(folder).write_bytes(LFS), r"want a dataset, got .*\.arrow, a Git LFS pointer; run `git lfs pull`"),
    "a Parquet of Git LFS": (lambda folder: write(folder, train__parquet=LFS), r"want a dataset, got .*train.parquet, a Git LFS pointer"),
    "saved, half a state.json": (save_without_state, r"want the split 'train' of the dataset .*, got none"),
    "saved by a newer version (datasets#7676)": (save_with_new_feature, r"Feature type 'NewFeature' not found"),
    "lists of captions": (lambda folder: Dataset.from_dict({"caption": [["a", "b"]]}).save_to_disk(folder), r"want text in 'caption' of .*; set captions.column"),
    "classes": (lambda folder: Dataset.from_dict({"caption": [0]}, Features({"caption": ClassLabel(names=["a"])})).save_to_disk(folder), r"want text in 'caption' of .*, got '0' in row 1"),
    "a loading script (datasets#7693)": (lambda folder: write(folder, captions__py="import datasets\n"), r"Dataset scripts are no longer supported"),
    "nothing": (lambda folder: None, r"doesn't contain any data files"),
    "a README with half a YAML": (lambda folder: write(folder, train__csv=CSV, README__md="---\nconfigs: [oops\n---\n"), r"while parsing a flow sequence"),
    "WebDataset": (save_tar, r"want key 'caption' in .*, got \['__key__', '__url__', 'txt'\] in row 1; set captions.column"),
    "an empty second Parquet": (save_parquet_and_nothing, r"cannot be read after row 3: .*Parquet file size is 0 bytes"),
    "a cut Parquet (datasets#4077)": (save_cut_parquet, r"want the split 'train' .*Either the file is corrupted"),
    "a CSV of latin-1": (lambda folder: write(folder, train__csv="caption\na café\n".encode("latin-1")), r"cannot be read after row 0: 'utf-8' codec"),
    "a compressed CSV that is cut": (lambda folder: write(folder, train__csv__gz=gzip.compress(CSV.encode() * 99)[:-20]), r"cannot be read after row 0: .*end-of-stream"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def offline_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.mark.slow
@pytest.mark.parametrize("case", GOOD)
def test_rows_of_a_dataset_are_kept_or_counted(case: str, tmp_path: Path) -> None:
    make, captions, dropped = GOOD[case]
    (tmp_path / "captions").mkdir()
    make(tmp_path / "captions")
    assert read(tmp_path, "captions") == (captions, dropped)


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_a_dataset_that_cannot_be_read_is_refused(case: str, tmp_path: Path) -> None:
    make, words = REFUSED[case]
    (tmp_path / "captions").mkdir()
    make(tmp_path / "captions")
    with pytest.raises(ValueError, match=words) as error:
        read(tmp_path, "captions")
    assert type(error.value).__module__.startswith("emuedit.")
