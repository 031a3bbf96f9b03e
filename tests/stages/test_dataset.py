import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emuedit.config import ParamsError, load
from emuedit.data.filters import FilterResult, FiltersError
from emuedit.data.publish import publish, scratch_folder
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import ShardError, read_shard, write_shard
from emuedit.stages import dataset
from emuedit.stages.dataset import DatasetError, DatasetParams, filter_pairs, run
from tests.stages.scored_pairs import FILTERS, make_pair, make_params, publish_pairs, publish_toy_pairs, read_verdicts
from tests.stages.workspace import ROOT, read_files


def make_table(*rows: tuple[str, str, float | None, float | None, float | None]) -> pa.Table:
    """Rows of instruction, task, dino, l1, direction."""
    columns = ["instruction_id", "task", "score_dino", "score_l1", "score_direction"]
    values = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
    kinds = [pa.string(), pa.string(), *[pa.float64()] * 3]
    arrays = {name: pa.array(values[name], kind) for name, kind in zip(columns, kinds, strict=True)}
    return pa.table({"id": [f"p{i}" for i in range(len(rows))], **arrays})


def reasons_of(result: FilterResult) -> list[set[str]]:
    """The reasons of each pair."""
    return [{result.reasons[r] for r in np.flatnonzero(column)} for column in result.failed.T]


def test_every_failed_filter_is_a_reason_and_bounds_are_inclusive() -> None:
    result = filter_pairs(
        make_table(
            ("a", "local", 0.5, 0.1, 0.0),  # on the bounds: passes
            ("b", "local", 0.4, 0.2, 0.0),
            ("c", "local", 0.95, 0.0, 0.0),
            ("d", "local", None, None, 0.0),
            ("e", "remove", None, 0.2, 0.0),  # its filters do not use dino
            ("f", "remove", 0.0, 0.21, 0.0),
            ("g", "style", None, None, None),  # the filters of `default` are empty
        ),
        make_params(),
    )
    assert reasons_of(result) == [
        set(), {"dino_min", "l1_max"}, {"dino_max"}, {"dino_missing", "l1_missing"}, set(), {"l1_max"}, set(),
    ]  # fmt: skip
    assert result.kept.tolist() == [True, False, False, False, True, False, True]


def test_the_best_pair_of_an_instruction_that_passes_is_kept() -> None:
    table = make_table(
        ("a", "remove", 0.0, 0.0, 0.3),
        ("b", "remove", 0.0, 0.0, 0.1),
        ("a", "remove", 0.0, 0.0, 0.7),
        ("a", "remove", 0.0, 0.9, 0.9),  # better, but it fails a filter
        ("b", "remove", 0.0, 0.0, 0.1),  # as good as the one before
        ("a", "remove", 0.0, 0.0, None),
        ("c", "sketch", 0.0, 0.0, None),
        ("c", "sketch", 0.0, 0.0, None),
    )
    not_best = {"not_best"}
    result = filter_pairs(table, make_params())
    assert reasons_of(result) == [not_best, set(), set(), {"l1_max"}, not_best, not_best, set(), not_best]
    kept = filter_pairs(table, make_params(keep_per_instruction=2)).kept
    assert kept.tolist() == [True, True, True, False, True, False, True, True]


def test_the_query_agrees_with_a_loop_over_rows() -> None:
    random = np.random.default_rng(3)

    def draw_score() -> float | None:
        return None if random.random() < 0.1 else round(float(random.random()), 2)

    rows = [
        (f"i{random.integers(150)}", str(random.choice(["local", "remove", "style"])), draw_score(), draw_score(), draw_score())
        for _ in range(600)
    ]
    rows = [(instruction, "local" if int(instruction[1:]) % 2 else task, *rest) for instruction, task, *rest in rows]  # type: ignore[misc]
    params = make_params(keep_per_instruction=2)
    passing: dict[str, list[tuple[float, int]]] = {}
    for i, (instruction, task, dino, l1, direction) in enumerate(rows):
        scores = {"dino": dino, "l1": l1}
        bounds = params.filters_for(task)
        if all(scores[s] is not None and b.get("min", -9) <= scores[s] <= b.get("max", 9) for s, b in bounds.items()):  # type: ignore[operator]
            passing.setdefault(instruction, []).append((9.0 if direction is None else -direction, i))
    best = {i for group in passing.values() for _, i in sorted(group)[:2]}
    result = filter_pairs(make_table(*rows), params)
    assert 50 < len(best) < 400
    assert set(np.flatnonzero(result.kept)) == best


def test_a_filter_on_a_score_that_no_pair_has_is_named() -> None:
    with pytest.raises(
        FiltersError, match=r"want the scores used in params.yaml: \['depth'\], available: \['dino', 'l1', 'direction'\]"
    ):
        filter_pairs(make_table(("a", "local", 0.5, 0.1, 0.0)), make_params(filters={"default": {"depth": {"max": 1.0}}}))


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ("{local: {dino: {min: 0.5}}}", "want an entry 'default'"),
        ("{default: {}, locale: {}}", "did you mean 'local'"),
        ("{default: {dino: {}}}", r"want \{min: x\}, \{max: y\} or both"),
        ("{default: {dino: {min: 2, max: 1}}}", "min <= max for default.dino"),
        ("{default: {dino: {least: 2}}}", "filters.default.dino"),
    ],
)
def test_invalid_filters_are_named(tmp_path: Path, filters: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(f"dataset: {{filters: {filters}, rank_by: dino}}\n")
    with pytest.raises(ParamsError, match=message):
        load(DatasetParams, "dataset", tmp_path / "params.yaml")


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return publish_toy_pairs(tmp_path)


def test_every_shard_of_pairs_has_a_shard_of_verdicts(tmp_path: Path, pairs: list[Pair]) -> None:
    summary = run(make_params(), tmp_path)
    out = tmp_path / dataset.OUT
    verdicts = read_verdicts(tmp_path)
    assert [verdict.pair_id for verdict in verdicts] == [pair.id for pair in pairs]
    assert [len(read_shard(file, Verdict)) for file in sorted(out.glob("shard-*"))] == [2, 2, 0]
    assert [verdict.kept for verdict in verdicts] == [True, False, True, False]
    assert verdicts[1].reasons == ("dino_min", "l1_max")
    assert verdicts[1].filters == FILTERS["local"]
    assert verdicts[1].scores == {"dino": 0.2, "l1": 0.5, "direction": 0.2}
    assert verdicts[3].reasons == ("not_best",)
    assert (verdicts[3].filters, verdicts[3].task) == ({}, "depth")
    assert summary.counts == {
        "pairs": 4, "local.pairs": 2, "depth.pairs": 2, "kept": 2, "local.kept": 1, "depth.kept": 1, "kept_instructions": 2,
        "local.kept_instructions": 1, "depth.kept_instructions": 1, "dino_min": 1, "local.dino_min": 1, "l1_max": 1,
        "local.l1_max": 1, "not_best": 1, "depth.not_best": 1,
    }  # fmt: skip
    assert summary.params["used_filters"] == {"local": FILTERS["local"], "depth": {}}


@pytest.mark.slow
def test_the_rows_read_for_verdicts_grow_with_the_number_of_pairs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows were selected from the table of all pairs once per shard: with the shards of an import, most of the time."""
    publish_pairs(tmp_path, *([make_pair(f"i{n}", "style", 0)] for n in range(60)))
    table_lengths: list[int] = []
    make_verdicts = dataset.verdicts

    def record_length(table: pa.Table, *arguments: Any) -> list[Verdict]:
        table_lengths.append(len(table))
        return make_verdicts(table, *arguments)

    monkeypatch.setattr(dataset, "verdicts", record_length)
    assert run(make_params(), tmp_path).counts["kept"] == 60
    assert len(table_lengths) == 61, "one call per shard, and one for the contact sheets"
    assert sum(table_lengths) <= 2 * 60


def test_tasks_are_reassigned_and_improbable_pairs_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = {"a": (0.05, 0.95), "b": (0.6, 0.4), "c": (0.01, 0.8), "d": (0.5, 0.5)}  # of local and remove
    pairs = [
        dataclasses.replace(make_pair(name, task, 0, dino=0.6, l1=0.15 if name == "a" else 0.0), instruction=name)
        for name, task in {"a": "local", "b": "local", "c": "local", "d": "sketch"}.items()
    ]
    publish_pairs(tmp_path, pairs[:1], pairs[1:])
    publish(scratch_folder(tmp_path, "router", "f"), tmp_path / dataset.ROUTER, "router", {}, {})

    def predict_tasks(texts: list[str], *_: Path) -> tuple[tuple[str, ...], Any]:
        return ("local", "remove"), np.array([probabilities[text] for text in texts])

    monkeypatch.setattr(dataset.task_reassignment, "predict_tasks", predict_tasks)
    summary = run(make_params(reassignment={"reassign": 0.9, "reject": 0.02}), tmp_path)
    verdicts = read_verdicts(tmp_path)
    assert [verdict.task for verdict in verdicts] == ["remove", "local", "local", "sketch"]
    # the filters are those of the task that a pair was made for
    assert [verdict.reasons for verdict in verdicts] == [("l1_max",), (), ("task_probability_min",), ()]
    assert [verdict.scores["task_probability"] for verdict in verdicts] == [0.95, 0.6, 0.01, None]
    assert [summary.counts[key] for key in ("reassigned", "local.reassigned", "sketch.reassigned")] == [1, 1, 0]
    assert "The router reassigned 1 of them to another task: local 1." in (tmp_path / dataset.OUT / "card.md").read_text()


def test_filtering_reads_no_picture(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[list[str]] = []
    read = pq.ParquetFile.read

    def record_columns(file: pq.ParquetFile, columns: list[str] | None = None, **kwargs: Any) -> pa.Table:
        requests.append(columns or file.schema_arrow.names)
        return read(file, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read", record_columns)
    run(make_params(), tmp_path)
    assert requests
    assert not {"source", "target", "mask"} & {name for columns in requests for name in columns}


def test_a_truncated_shard_of_pairs_is_named(tmp_path: Path, pairs: list[Pair]) -> None:
    shard = sorted((tmp_path / "data/pairs").glob("shard-*.parquet"))[0]
    content = shard.read_bytes()
    shard.unlink()  # a link to the scratch, perhaps
    shard.write_bytes(content[:-9])
    with pytest.raises(ShardError, match=rf"{shard} is damaged or truncated .*; delete it and run its stage again"):
        run(make_params(), tmp_path)


def test_contact_sheets_and_a_data_card_are_written(tmp_path: Path, pairs: list[Pair]) -> None:
    summary = run(make_params(licences={"base_model": "MIT"}), tmp_path)
    out = tmp_path / dataset.OUT
    for_people = {"card.md", "sheet_depth.png", "sheet_local.png"}
    assert for_people | {"shard-00000.parquet", "shard-00001.parquet", "shard-00002.parquet"} == set(summary.shards)
    card = (out / "card.md").read_text()
    assert "- local: `dino` >= 0.5, `dino` <= 0.9, `l1` <= 0.1" in card.splitlines()
    assert "Revision of the base_model: `m`." in card
    assert len(read_verdicts(tmp_path)) == 4, "the other files are not shards"


@pytest.mark.slow
def test_another_threshold_changes_the_verdicts_only(tmp_path: Path, pairs: list[Pair]) -> None:
    run(make_params(), tmp_path)
    first = (tmp_path / dataset.OUT / "shard-00000.parquet").read_bytes()
    loose = make_params(filters=FILTERS | {"local": {"dino": {"min": 0.1}}})
    assert run(loose, tmp_path).counts["local.not_best"] == 1  # the candidate with the better direction now passes
    assert [verdict.kept for verdict in read_verdicts(tmp_path)] == [False, True, True, False]
    run(make_params(), tmp_path)
    assert (tmp_path / dataset.OUT / "shard-00000.parquet").read_bytes() == first


def test_an_interrupted_run_resumes_after_the_last_shard_with_the_same_bytes(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_params(), tmp_path)
    uninterrupted = read_files(tmp_path / dataset.OUT)
    for file in (tmp_path / dataset.OUT).iterdir():
        file.unlink()
    (tmp_path / dataset.OUT).rmdir()
    written: list[str] = []

    def interrupted_write(path: Path, *arguments: Any) -> None:
        is_first_time = path.name not in written
        written.append(path.name)
        if path.name == "shard-00001.parquet" and is_first_time:
            raise KeyboardInterrupt
        write_shard(path, *arguments)

    monkeypatch.setattr(dataset, "write_shard", interrupted_write)
    with pytest.raises(KeyboardInterrupt):
        run(make_params(), tmp_path)
    assert not (tmp_path / dataset.OUT).exists()
    run(make_params(), tmp_path)
    assert written == [f"shard-0000{n}.parquet" for n in (0, 1, 1, 2)]
    assert json.loads((tmp_path / dataset.OUT / "summary.json").read_text())["counts"]["kept"] == 2
    assert read_files(tmp_path / dataset.OUT) == uninterrupted


def test_keeping_nothing_is_an_error_with_the_reasons(tmp_path: Path, pairs: list[Pair]) -> None:
    with pytest.raises(DatasetError, match=r"'dino_missing': 2.*loosen dataset.filters"):
        run(make_params(filters={"default": {"dino": {"min": 0.99}}}), tmp_path)


def test_the_default_filters_are_complete() -> None:
    params = load(DatasetParams, "dataset", ROOT / "params.yaml")
    assert params.filters_for("depth") == {}
    assert params.filters_for("remove")["object_left_in_mask"].keys() == {"max"}
