import json
from pathlib import Path

import datasets
import pandas as pd
import pytest

from emuedit.config import ParamsError, load
from emuedit.data.caption_sources import CaptionSourceError
from emuedit.data.language import LanguageError, probability
from emuedit.data.publish import read_folder, read_summary
from emuedit.data.records import Caption, Drop
from emuedit.stages import captions
from emuedit.stages.captions import CaptionsError, Params, clean, run

ROOT = Path(__file__).parents[2]
LINES = ["a  red\tstar ", "", "A red star.", "star", "a blue ring", "one two three four five six"]


def knobs(source: str, **changes: object) -> Params:
    world = load(Params, "captions", ROOT / "params.yaml").world.model_copy(update={"name": "w", "captions": source})
    base = {"world": world, "split": "train", "column": "caption", "n_rows": 100, "rows_per_shard": 2}
    return Params.model_validate(base | {"min_words": 2, "max_words": 5, "languages": (), "min_language": 0.2} | changes)


def test_clean_keeps_or_says_why_not() -> None:
    params, seen = knobs("c.txt"), set[str]()
    got = [clean(text, i, seen, params) for i, text in enumerate([*LINES, None])]
    assert [one.text if isinstance(one, Caption) else one.reason for one in got] == [
        "a red star", "empty", "duplicate", "too_short", "a blue ring", "too_long", "empty",
    ]  # fmt: skip
    assert [one.index for one in got] == list(range(7))


def write(folder: Path, kind: str) -> str:
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
    elif kind == "-dataset":  # as the hub has them: a file a split, pictures beside the captions
        pictures = [{"bytes": b"not read", "path": None} for _ in LINES]
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        whole = datasets.Dataset.from_dict({"image": pictures, "caption": LINES}, features)
        for split, rows in {"train": whole, "test": whole.select([0])}.items():
            rows.to_parquet(folder / name / "data" / f"{split}-00000-of-00001.parquet")
    elif kind == "-saved":
        whole = datasets.Dataset.from_dict({"caption": LINES, "other": LINES})
        datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(folder / name)
    else:
        name = f"source_{abs(hash(str(folder)))}.py"
        (folder / name).write_text(f"def captions(split, start, n):\n    return {LINES!r}[start : start + n]\n")
    return name


@pytest.mark.parametrize("kind", [".txt", ".csv", ".jsonl", ".parquet", "-dataset", "-saved", ".py"])
def test_every_source_gives_the_same_captions(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    summary = run(knobs(write(tmp_path, kind)), tmp_path)
    out = tmp_path / captions.OUT
    assert [(one.text, one.index) for one in read_folder(out, Caption)] == [("a red star", 0), ("a blue ring", 4)]
    dropped = list(read_folder(out, Drop, "dropped-*.parquet"))
    assert [(one.reason, one.index) for one in dropped] == [("empty", 1), ("duplicate", 2), ("too_short", 3), ("too_long", 5)]
    counts = {"kept": 2, "dropped_empty": 1, "dropped_duplicate": 1, "dropped_too_short": 1, "dropped_too_long": 1}
    assert summary.counts == counts
    assert read_summary(out) == summary


def test_a_split_and_a_column_of_a_dataset(tmp_path: Path) -> None:
    source = write(tmp_path, "-dataset")
    for one in (source, write(tmp_path, "-saved")):
        assert run(knobs(one, split="test"), tmp_path).counts == {"kept": 1}
    with pytest.raises(CaptionSourceError, match="want the split 'dev' of the dataset"):
        run(knobs(source, split="dev"), tmp_path)
    plain = datasets.Dataset.from_dict({"text": ["a dog"]})
    plain.to_parquet(tmp_path / "plain" / "train.parquet")
    with pytest.raises(CaptionSourceError, match=r"want key 'caption' in .* got \['text'\] in row 1"):
        run(knobs("plain"), tmp_path)


def test_a_dataset_on_the_hub_is_streamed_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def load_dataset(**given: object) -> datasets.IterableDataset:
        asked.append(given)
        return datasets.Dataset.from_dict({"caption": LINES, "other": LINES}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / "hub.yaml").write_text(f"captions: {{dataset: owner/name, config: small, revision: {commit}}}\n")
    first = run(knobs("hub.yaml", n_rows=5), tmp_path)
    assert first.counts["kept"] == 2
    assert asked == [{"path": "owner/name", "name": "small", "revision": commit, "split": "train", "streaming": True}]
    (tmp_path / "hub.yaml").write_text(f"captions: {{dataset: owner/name, config: small, revision: {commit[::-1]}}}\n")
    assert run(knobs("hub.yaml", n_rows=5), tmp_path).fingerprint != first.fingerprint


def test_other_languages_are_dropped(tmp_path: Path) -> None:
    lines = ["two dogs on a sofa", "un chien sur un canapé", "ein Hund auf dem Sofa", "ソファ の上の 犬", "a man on a horse"]
    (tmp_path / "c.txt").write_text("\n".join(lines))
    assert run(knobs("c.txt"), tmp_path).counts == {"kept": 5}
    assert run(knobs("c.txt", languages=("en",)), tmp_path).counts == {"kept": 2, "dropped_other_language": 3}
    run(knobs("c.txt", languages=("en", "fr")), tmp_path)
    assert [one.index for one in read_folder(tmp_path / captions.OUT, Caption)] == [0, 1, 4]
    assert run(knobs("c.txt", languages=("en",), min_language=0.0), tmp_path).counts == {"kept": 5}
    with pytest.raises(LanguageError, match=r"want languages out of .*en.*; got english"):
        probability("a dog", ["english"])


def test_reads_n_rows_at_most(tmp_path: Path) -> None:
    run(knobs(write(tmp_path, ".txt"), n_rows=3), tmp_path)
    out = tmp_path / captions.OUT
    assert sum(1 for _ in read_folder(out, Caption)) + sum(1 for _ in read_folder(out, Drop, "dropped-*.parquet")) == 3


def test_stopped_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = knobs(write(tmp_path, ".txt"))
    run(params, tmp_path)
    out = tmp_path / captions.OUT
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    seen_rows: list[int] = []

    def stopping(text: str | None, index: int, seen: set[str], params: Params) -> Caption | Drop:
        if index == 4 and 4 not in seen_rows:
            seen_rows.append(4)
            raise KeyboardInterrupt
        seen_rows.append(index)
        return clean(text, index, seen, params)

    monkeypatch.setattr(captions, "clean", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(params, tmp_path)
    run(params, tmp_path)
    assert seen_rows == [0, 1, 2, 3, 4, 4, 5]
    assert {file.name: file.read_bytes() for file in out.iterdir()} == whole


def test_changed_source_starts_afresh(tmp_path: Path) -> None:
    params = knobs(write(tmp_path, ".txt"))
    first = run(params, tmp_path)
    (tmp_path / "captions.txt").write_text("a green heart\n")
    assert run(params, tmp_path).fingerprint != first.fingerprint
    assert [one.text for one in read_folder(tmp_path / captions.OUT, Caption)] == ["a green heart"]


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
        run(knobs(name), tmp_path)
    assert not (tmp_path / captions.OUT).exists()


def test_python_source_must_lie_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("")
    (tmp_path / "root").mkdir()
    with pytest.raises(ParamsError, match="want a Python file below"):
        run(knobs("../c.py"), tmp_path / "root")


def test_default_world_has_captions(tmp_path: Path) -> None:
    params = load(Params, "captions", ROOT / "params.yaml").model_copy(update={"n_rows": 64})
    target = tmp_path / params.world.captions
    target.parent.mkdir(parents=True)
    target.symlink_to(ROOT / params.world.captions)
    assert run(params, tmp_path).counts["kept"] > 32
