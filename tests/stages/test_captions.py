import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from emuedit.config import ParamsError, load
from emuedit.data.caption_sources import CaptionSourceError
from emuedit.data.language import LanguageError, probability
from emuedit.data.publish import read_folder, read_summary, scratch_folder
from emuedit.data.records import Caption, Drop
from emuedit.stages import captions
from emuedit.stages.captions import CaptionsError, CaptionsParams, clean, reason_to_drop, run
from tests.stages.workspace import ROOT, Workspace, check_resume, read_files, toy_world

LINES = ["a  red\tstar ", "", "A red star.", "star", "a blue ring", "one two three four five six"]
COUNTS = {
    "kept": 2, "dropped": 4, "dropped_empty": 1, "dropped_duplicate": 1, "dropped_too_short": 1, "dropped_too_long": 1,
}  # fmt: skip


def make_params(source: str, **changes: object) -> CaptionsParams:
    world = toy_world() | {"name": "w", "captions": source}
    values = {"world": world, "n_rows": 100, "rows_per_shard": 2, "min_words": 2, "max_words": 5}
    return CaptionsParams.model_validate(values | changes)


def test_a_row_is_kept_or_dropped_with_a_reason() -> None:
    params, seen = make_params("c.txt"), set[str]()
    results = [clean(text, i, seen, params) for i, text in enumerate([*LINES, None])]
    assert [result.text if isinstance(result, Caption) else result.reason for result in results] == [
        "a red star", "empty", "duplicate", "too_short", "a blue ring", "too_long", "empty",
    ]  # fmt: skip
    assert [result.index for result in results] == list(range(7))


def test_character_references_and_composed_accents_are_characters() -> None:
    """The same caption was kept once in each spelling, and the LLM and CLIP read `&amp;`."""
    params, seen = make_params("c.txt"), set[str]()
    texts = [
        "Tom &amp; Jerry&nbsp;at caf&eacute;",
        "Tom & Jerry at café",
        "Tom &#38; Jerry at cafe\u0301",
        "climbing&paragliding in R&D",
    ]
    results = [clean(text, 0, seen, params) for text in texts]
    assert [result.text if isinstance(result, Caption) else result.reason for result in results] == [
        "Tom & Jerry at café", "duplicate", "duplicate", "climbing&paragliding in R&D",
    ]  # fmt: skip
    assert reason_to_drop("&nbsp;", params) == "empty"


def write_source(folder: Path, kind: str) -> str:
    """Write LINES as a caption source of a kind (a suffix, `-dataset` or `-saved`); returns its name."""
    name = f"captions{kind}"
    frame = pd.DataFrame({"other": range(len(LINES)), "caption": LINES})
    if kind == ".txt":
        (folder / name).write_text("\n".join(LINES) + "\n")
    elif kind == ".csv":
        frame.to_csv(folder / name, index=False)
    elif kind == ".jsonl":
        (folder / name).write_text("".join(json.dumps({"caption": line}) + "\n" for line in LINES))
    elif kind == ".parquet":
        frame.to_parquet(folder / name)
    elif kind == "-dataset":  # as the hub has them: one file per split, pictures beside the captions
        pictures = [{"bytes": b"not read", "path": None} for _ in LINES]
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        rows = datasets.Dataset.from_dict({"image": pictures, "caption": LINES}, features)
        for split, split_rows in {"train": rows, "test": rows.select([0])}.items():
            split_rows.to_parquet(folder / name / "data" / f"{split}-00000-of-00001.parquet")
    elif kind == "-saved":
        rows = datasets.Dataset.from_dict({"caption": LINES, "other": LINES})
        datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(folder / name)
    else:
        name = f"source_{abs(hash(str(folder)))}.py"
        (folder / name).write_text(f"def captions(split, start, n):\n    return {LINES!r}[start : start + n]\n")
    return name


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".txt", ".csv", ".jsonl", ".parquet", "-dataset", "-saved", ".py"])
def test_every_kind_of_source_gives_the_same_captions(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    summary = run(make_params(write_source(tmp_path, kind)), tmp_path)
    out = tmp_path / captions.OUT
    assert [(caption.text, caption.index) for caption in read_folder(out, Caption)] == [("a red star", 0), ("a blue ring", 4)]
    drops = list(read_folder(out, Drop, "dropped-*.parquet"))
    assert [(drop.reason, drop.index) for drop in drops] == [("empty", 1), ("duplicate", 2), ("too_short", 3), ("too_long", 5)]
    assert summary.counts == COUNTS
    assert read_summary(out) == summary


@pytest.mark.slow
def test_split_and_column_of_a_dataset_are_chosen_by_params(tmp_path: Path) -> None:
    source = write_source(tmp_path, "-dataset")
    for name in (source, write_source(tmp_path, "-saved")):
        assert run(make_params(name, split="test"), tmp_path).counts == {"kept": 1, "dropped": 0}
    with pytest.raises(CaptionSourceError, match="want the split 'dev' of the dataset"):
        run(make_params(source, split="dev"), tmp_path)
    rows = datasets.Dataset.from_dict({"text": ["a dog"]})
    rows.to_parquet(tmp_path / "plain" / "train.parquet")
    with pytest.raises(CaptionSourceError, match=r"want key 'caption' in .* got \['text'\] in row 1"):
        run(make_params("plain"), tmp_path)


def test_a_dataset_on_the_hub_is_streamed_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[dict[str, object]] = []

    def load_dataset(**arguments: object) -> datasets.IterableDataset:
        requests.append(arguments)
        return datasets.Dataset.from_dict({"caption": LINES, "other": LINES}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    commit = "0123456789abcdef0123456789abcdef01234567"
    scratch_folders: list[Path] = []

    def record_scratch(*arguments: Any) -> Path:
        scratch_folders.append(scratch_folder(*arguments))
        return scratch_folders[-1]

    monkeypatch.setattr(captions, "scratch_folder", record_scratch)
    (tmp_path / "hub.yaml").write_text(f"captions: {{dataset: owner/name, config: small, revision: {commit}}}\n")
    assert run(make_params("hub.yaml", n_rows=5), tmp_path).counts["kept"] == 2
    assert requests == [{"path": "owner/name", "name": "small", "revision": commit, "split": "train", "streaming": True}]
    (tmp_path / "hub.yaml").write_text(f"captions: {{dataset: owner/name, config: small, revision: {commit[::-1]}}}\n")
    run(make_params("hub.yaml", n_rows=5), tmp_path)
    assert scratch_folders[0] != scratch_folders[1], "the rows of another commit are other work"


@pytest.mark.slow
def test_captions_in_other_languages_are_dropped(tmp_path: Path) -> None:
    lines = ["two dogs on a sofa", "un chien sur un canapé", "ein Hund auf dem Sofa", "ソファ の上の 犬", "a man on a horse"]
    (tmp_path / "c.txt").write_text("\n".join(lines))
    assert run(make_params("c.txt"), tmp_path).counts == {"kept": 5, "dropped": 0}
    counts = run(make_params("c.txt", languages=("en",)), tmp_path).counts
    assert counts == {"kept": 2, "dropped": 3, "dropped_other_language": 3}
    run(make_params("c.txt", languages=("en", "fr")), tmp_path)
    assert [caption.index for caption in read_folder(tmp_path / captions.OUT, Caption)] == [0, 1, 4]
    assert run(make_params("c.txt", languages=("en",), min_language=0.0), tmp_path).counts == {"kept": 5, "dropped": 0}
    with pytest.raises(LanguageError, match=r"want languages from .*en.*; got english"):
        probability("a dog", ["english"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".txt", ".csv", ".jsonl", ".parquet", "-dataset", ".py"])
def test_progress_counts_the_rows_that_there_are(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = write_source(tmp_path, kind)
    for n_rows in (4, 6) if kind == ".py" else (4, 10000):
        run(make_params(source, n_rows=n_rows), tmp_path)
        n_read = min(n_rows, len(LINES))
        first, *_, last = (line for line in capsys.readouterr().err.splitlines() if line.startswith("captions: "))
        if kind == "-dataset":
            assert "%" not in first, "its rows are not counted before"
            assert last == f"captions: {n_read} rows"
        else:
            assert first.startswith(f"captions: 0/{n_read} rows, 0%")
            assert last == f"captions: {n_read}/{n_read} rows, 100%"


def test_at_most_n_rows_are_read(tmp_path: Path) -> None:
    run(make_params(write_source(tmp_path, ".txt"), n_rows=3), tmp_path)
    out = tmp_path / captions.OUT
    n_kept, n_dropped = len(list(read_folder(out, Caption))), len(list(read_folder(out, Drop, "dropped-*.parquet")))
    assert n_kept + n_dropped == 3


def test_an_interrupted_run_resumes_after_the_last_shard_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(write_source(tmp_path, ".txt"))
    run(params, tmp_path)
    uninterrupted = read_files(tmp_path / captions.OUT)
    cleaned_rows: list[int] = []

    def interrupted_clean(text: str | None, index: int, seen: set[str], params: CaptionsParams, image: None) -> Caption | Drop:
        is_first_time = index not in cleaned_rows
        cleaned_rows.append(index)
        if index == 4 and is_first_time:
            raise KeyboardInterrupt
        return clean(text, index, seen, params)

    monkeypatch.setattr(captions, "clean", interrupted_clean)
    with pytest.raises(KeyboardInterrupt):
        run(params, tmp_path)
    run(params, tmp_path)
    assert cleaned_rows == [0, 1, 2, 3, 4, 4, 5]
    assert read_files(tmp_path / captions.OUT) == uninterrupted


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_resumes_after_the_last_shard_with_the_same_bytes(
    make_workspace: Callable[..., Workspace], number: signal.Signals
) -> None:
    sections = {
        "world": {"captions": "captions.txt"}, "captions": {"n_rows": 100, "rows_per_shard": 2, "max_words": 5},
        "instructions": {"n_captions": 2},
    }  # fmt: skip
    stopped, uninterrupted = (make_workspace(name, **sections) for name in ("stopped", "uninterrupted"))
    for workspace in (stopped, uninterrupted):
        (workspace.folder / "captions.txt").write_text("\n".join(LINES) + "\n")
    check_resume(stopped, uninterrupted, "captions", captions.OUT, number)


@pytest.mark.slow
def test_the_command_of_the_stage_says_what_it_made(make_workspace: Callable[..., Workspace]) -> None:
    sections = {"captions": {"n_rows": 100, "max_words": 5}, "instructions": {"n_captions": 2}}
    workspace = make_workspace("workspace", world={"captions": "captions.txt"}, **sections)
    (workspace.folder / "captions.txt").write_text("\n".join(LINES) + "\n")
    command = [sys.executable, "-m", "emuedit.stages.captions"]
    process = subprocess.run(command, cwd=workspace.folder, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"captions: 2 captions kept, 4 rows dropped in \d+ s", process.stderr.splitlines()[-1])
    assert read_summary(workspace.folder / captions.OUT).counts == COUNTS
    (workspace.folder / "captions.txt").unlink()
    process = subprocess.run(command, cwd=workspace.folder, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("captions: params.yaml: world.captions: want an existing file or folder, got none at ")


def test_a_changed_source_starts_afresh(tmp_path: Path) -> None:
    params = make_params(write_source(tmp_path, ".txt"))
    first = run(params, tmp_path)
    (tmp_path / "captions.txt").write_text("a green star\n")
    assert run(params, tmp_path).key != first.key
    assert [caption.text for caption in read_folder(tmp_path / captions.OUT, Caption)] == ["a green star"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "want the caption source of world 'w', got none at"),
        ("c.csv", "text\nx\n", r"want key 'caption' in .*, got \['text'\] in row 1; set captions.column"),
        ("c.jsonl", '{"text": 1}\n', "want key 'caption'"),
        ("c.jsonl", '{"caption": ["a dog"]}\n', "want text in 'caption' of .* got .*a dog.* in row 1"),
        ("c.yaml", "captions: {dataset: o/n, config: null, revision: main}\n", "key 'revision': String should match"),
        ("c.doc", "x", "want a caption source .txt, .csv"),
        ("c.txt", "\n\n", "want at least one caption from"),
        ("no_function.py", "captions = 3\n", "want a function captions in no_function.py, got 3"),
    ],
)
def test_unreadable_sources_are_named(
    tmp_path: Path, name: str, content: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((CaptionsError, CaptionSourceError, ParamsError), match=message):
        run(make_params(name), tmp_path)
    assert not (tmp_path / captions.OUT).exists()


def test_a_python_source_must_lie_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("")
    (tmp_path / "root").mkdir()
    with pytest.raises(ParamsError, match="want a Python file below"):
        run(make_params("../c.py"), tmp_path / "root")


def test_the_default_world_has_captions(tmp_path: Path) -> None:
    params = load(CaptionsParams, "captions", ROOT / "params.yaml").model_copy(update={"n_rows": 64})
    assert run(params, tmp_path).counts["kept"] > 32
