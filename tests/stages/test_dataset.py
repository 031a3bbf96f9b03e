import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from emuedit.config import ParamsError, load
from emuedit.data.filters import FiltersError
from emuedit.data.png import encode_png
from emuedit.data.publish import publish, read_folder, scratch_folder
from emuedit.data.records import Pair, Verdict
from emuedit.data.shards import read_shard, write_shard
from emuedit.stages import dataset
from emuedit.stages.dataset import DatasetError, Params, judge, run

ROOT = Path(__file__).parents[2]
PICTURE = encode_png(np.zeros((2, 3, 3), np.uint8))
GATES: dict[str, Any] = {
    "default": {},
    "local": {"dino": {"min": 0.5, "max": 0.9}, "l1": {"max": 0.1}},
    "remove": {"l1": {"max": 0.2}},
}


def knobs(**changes: Any) -> Params:
    fixed = {"gates": GATES, "rank_by": "direction", "keep": 1, "sheet_pairs": 2, "licences": {}, "mix": {}, "routing": None}
    return Params.model_validate(fixed | changes)


def table(*rows: tuple[str, str, float | None, float | None, float | None]) -> pa.Table:
    """Rows of instruction, task, dino, l1, direction."""
    columns = ["instruction_id", "task", "score_dino", "score_l1", "score_direction"]
    values = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
    kinds = [pa.string(), pa.string(), *[pa.float64()] * 3]
    made = {name: pa.array(values[name], kind) for name, kind in zip(columns, kinds, strict=True)}
    return pa.table({"id": [f"p{i}" for i in range(len(rows))], **made})


def reasons(found: dataset.FilterResult) -> list[set[str]]:
    return [{found.reasons[r] for r in np.flatnonzero(column)} for column in found.failed.T]


def test_every_failed_gate_is_a_reason_and_bounds_are_inside() -> None:
    found = judge(
        table(
            ("a", "local", 0.5, 0.1, 0.0),  # on the bounds: passes
            ("b", "local", 0.4, 0.2, 0.0),
            ("c", "local", 0.95, 0.0, 0.0),
            ("d", "local", None, None, 0.0),
            ("e", "remove", None, 0.2, 0.0),  # dino is not asked of it
            ("f", "remove", 0.0, 0.21, 0.0),
            ("g", "style", None, None, None),  # the default row asks for nothing
        ),
        knobs(),
    )
    assert reasons(found) == [
        set(), {"dino_min", "l1_max"}, {"dino_max"}, {"dino_missing", "l1_missing"}, set(), {"l1_max"}, set(),
    ]  # fmt: skip
    assert found.kept.tolist() == [True, False, False, False, True, False, True]


def test_of_an_instruction_the_best_that_passes_is_kept() -> None:
    some = table(
        ("a", "remove", 0.0, 0.0, 0.3),
        ("b", "remove", 0.0, 0.0, 0.1),
        ("a", "remove", 0.0, 0.0, 0.7),
        ("a", "remove", 0.0, 0.9, 0.9),  # better, but it fails a gate
        ("b", "remove", 0.0, 0.0, 0.1),  # as good as the one before
        ("a", "remove", 0.0, 0.0, None),
        ("c", "sketch", 0.0, 0.0, None),
        ("c", "sketch", 0.0, 0.0, None),
    )
    lost = {"not_best"}
    assert reasons(judge(some, knobs())) == [lost, set(), set(), {"l1_max"}, lost, lost, set(), lost]
    assert judge(some, knobs(keep=2)).kept.tolist() == [True, True, True, False, True, False, True, True]


def test_agrees_with_a_loop_over_rows() -> None:
    chance = np.random.default_rng(3)

    def score() -> float | None:
        return None if chance.random() < 0.1 else round(float(chance.random()), 2)

    rows = [
        (f"i{chance.integers(150)}", str(chance.choice(["local", "remove", "style"])), score(), score(), score())
        for _ in range(600)
    ]
    rows = [(instruction, "local" if int(instruction[1:]) % 2 else task, *rest) for instruction, task, *rest in rows]  # type: ignore[misc]
    params = knobs(keep=2)
    kept: dict[str, list[tuple[float, int]]] = {}
    for i, (instruction, task, dino, l1, direction) in enumerate(rows):
        values = {"dino": dino, "l1": l1}
        asked = params.row(task)
        if all(values[s] is not None and b.get("min", -9) <= values[s] <= b.get("max", 9) for s, b in asked.items()):  # type: ignore[operator]
            kept.setdefault(instruction, []).append((9.0 if direction is None else -direction, i))
    best = {i for group in kept.values() for _, i in sorted(group)[:2]}
    found = judge(table(*rows), params)
    assert 50 < len(best) < 400
    assert set(np.flatnonzero(found.kept)) == best


def test_a_gate_on_no_column_is_named() -> None:
    with pytest.raises(FiltersError, match=r"want the scores \['depth'\] .* got \['dino', 'l1', 'direction'\]"):
        judge(table(("a", "local", 0.5, 0.1, 0.0)), knobs(gates={"default": {"depth": {"max": 1.0}}}))


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ("{local: {dino: {min: 0.5}}}", "want a row 'default'"),
        ("{default: {}, locale: {}}", "did you mean 'local'"),
        ("{default: {dino: {}}}", r"want \{min: x\}, \{max: y\} or both"),
        ("{default: {dino: {min: 2, max: 1}}}", "min <= max for default.dino"),
        ("{default: {dino: {least: 2}}}", "gates.default.dino"),
    ],
)
def test_wrong_gates_are_named(tmp_path: Path, gates: str, message: str) -> None:
    rest = "rank_by: dino, keep: 1, sheet_pairs: 2, licences: {}, mix: {}"
    (tmp_path / "params.yaml").write_text(f"dataset: {{gates: {gates}, {rest}}}\n")
    with pytest.raises(ParamsError, match=message):
        load(Params, "dataset", tmp_path / "params.yaml")


def pair(instruction: str, task: str, candidate: int, **scores: float | None) -> Pair:
    return Pair(
        instruction_id=instruction, parent_ids=(instruction,), task=task, instruction="go", source_caption="a",
        target_caption="b", seed=candidate, model_revision="m", recipe={"candidate": candidate}, source=PICTURE, target=PICTURE,
        mask=None, scores={"dino": None, "l1": None, "direction": None, **scores},
    )  # fmt: skip


def publish_pairs(root: Path, *shards: list[Pair]) -> list[Pair]:
    scratch = scratch_folder(root, "pairs", "f")
    for number, some in enumerate(shards):
        write_shard(scratch / f"shard-{number:05d}.parquet", some, Pair)
    publish(scratch, root / dataset.IN, "pairs", {}, {})
    return [one for some in shards for one in some]


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    first = [pair("a", "local", 0, dino=0.6, l1=0.05, direction=0.1), pair("a", "local", 1, dino=0.2, l1=0.5, direction=0.2)]
    second = [pair("b", "depth", 0), pair("b", "depth", 1)]
    return publish_pairs(tmp_path, first, second, [])


def test_verdicts_stand_beside_their_pairs(tmp_path: Path, pairs: list[Pair]) -> None:
    summary = run(knobs(), tmp_path)
    out = tmp_path / dataset.OUT
    found = list(read_folder(out, Verdict, verify=True))
    assert [one.pair_id for one in found] == [one.id for one in pairs]
    assert [len(read_shard(file, Verdict)) for file in sorted(out.glob("shard-*"))] == [2, 2, 0]
    assert [one.kept for one in found] == [True, False, True, False]
    assert found[1].reasons == ("dino_min", "l1_max")
    assert found[1].gates == GATES["local"]
    assert found[1].scores == {"dino": 0.2, "l1": 0.5, "direction": 0.2}
    assert found[3].reasons == ("not_best",)
    assert (found[3].gates, found[3].task) == ({}, "depth")
    assert summary.counts == {
        "pairs": 4, "local.pairs": 2, "depth.pairs": 2, "kept": 2, "local.kept": 1, "depth.kept": 1, "kept_instructions": 2,
        "local.kept_instructions": 1, "depth.kept_instructions": 1, "dino_min": 1, "local.dino_min": 1, "l1_max": 1,
        "local.l1_max": 1, "not_best": 1, "depth.not_best": 1,
    }  # fmt: skip
    assert summary.params["in_force"] == {"local": GATES["local"], "depth": {}}


def test_the_router_reassigns_or_rejects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"a": (0.05, 0.95), "b": (0.6, 0.4), "c": (0.01, 0.8), "d": (0.5, 0.5)}  # p(local), p(remove)
    some = [
        dataclasses.replace(pair(name, task, 0, dino=0.6, l1=0.15 if name == "a" else 0.0), instruction=name)
        for name, task in {"a": "local", "b": "local", "c": "local", "d": "sketch"}.items()
    ]
    publish_pairs(tmp_path, some[:1], some[1:])
    publish(scratch_folder(tmp_path, "router", "f"), tmp_path / dataset.ROUTER, "router", {}, {})
    monkeypatch.setattr(dataset.routing, "read", lambda texts, *_: (("local", "remove"), np.array([said[t] for t in texts])))
    summary = run(knobs(routing={"reassign": 0.9, "reject": 0.02}), tmp_path)
    found = list(read_folder(tmp_path / dataset.OUT, Verdict, verify=True))
    assert [one.task for one in found] == ["remove", "local", "local", "sketch"]
    assert [one.reasons for one in found] == [("l1_max",), (), ("task_probability_min",), ()]  # gates of the task it was made for
    assert [one.scores["task_probability"] for one in found] == [0.95, 0.6, 0.01, None]
    assert [summary.counts[key] for key in ("reassigned", "local.reassigned", "sketch.reassigned")] == [1, 1, 0]
    assert "The router reassigned 1 of them to another task: local 1." in (tmp_path / dataset.OUT / "card.md").read_text()


def mix_in(root: Path, name: str, *shards: list[Pair]) -> str:
    scratch = scratch_folder(root, name, "f")
    for number, some in enumerate(shards):
        write_shard(scratch / f"shard-{number:05d}.parquet", some, Pair)
    publish(scratch, root / "data" / name, "import", {"source": f"org/{name}", "licence": "MIT"}, {})
    return f"data/{name}"


def imported(instruction: str, task: str, **scores: float | None) -> Pair:
    return dataclasses.replace(pair(instruction, task, 0), scores=scores)


def test_mixed_pairs_have_gates_of_their_own(tmp_path: Path, pairs: list[Pair]) -> None:
    theirs = [imported("x", "local", sim=0.9), imported("y", "remove", sim=0.1), imported("z", "local", sim=None)]
    plain = [imported("v", "style"), imported("w", "depth")]
    run(knobs(), tmp_path)
    alone = {file.name: file.read_bytes() for file in (tmp_path / dataset.OUT).glob("shard-*")}
    mix = {mix_in(tmp_path, "theirs", theirs[:2], theirs[2:]): {"default": {"sim": {"min": 0.5}}}}
    mix = {mix_in(tmp_path, "plain", plain): {"default": {}}, **mix}
    summary = run(knobs(mix=dict(reversed(mix.items()))), tmp_path)
    assert summary.params["mix"] == mix
    found = list(read_folder(tmp_path / dataset.OUT, Verdict, verify=True))
    assert [one.pair_id for one in found] == [one.id for one in pairs + plain + theirs], "ours, then folders by name"
    assert [one.kept for one in found] == [True, False, True, False, True, True, True, False, False]
    assert [one.reasons for one in found[6:]] == [(), ("sim_min",), ("sim_missing",)]
    assert (found[6].gates, found[4].gates) == ({"sim": {"min": 0.5}}, {})
    assert found[6].scores == {"dino": None, "l1": None, "direction": None, "sim": 0.9}
    written = (tmp_path / dataset.OUT / "card.md").read_text()
    assert "| `data/plain` | `org/plain` | MIT | 2 | 2 | default: none |" in written
    assert "| `data/theirs` | `org/theirs` | MIT | 3 | 1 | default: `sim` >= 0.5 |" in written
    assert "Revision of the base_model: `m`." in written
    again = {file.name for file in (tmp_path / dataset.OUT).glob("shard-*")}
    assert again - set(alone) == {f"shard-mix{n}.parquet" for n in ("1-00000", "2-00000", "2-00001")}
    run(knobs(), tmp_path)
    assert {file.name: file.read_bytes() for file in (tmp_path / dataset.OUT).glob("shard-*")} == alone


def test_a_mixed_folder_is_asked_what_it_can_answer(tmp_path: Path, pairs: list[Pair]) -> None:
    folder = mix_in(tmp_path, "theirs", [imported("x", "local", sim=0.9)])
    with pytest.raises(FiltersError, match=r"want the scores \['dino'\] .* got \['sim'\]"):
        run(knobs(mix={folder: {"default": {"dino": {"min": 0.5}}}}), tmp_path)


def test_a_pair_comes_once(tmp_path: Path, pairs: list[Pair]) -> None:
    folder = mix_in(tmp_path, "theirs", pairs[:2])
    with pytest.raises(DatasetError, match="want every pair once in data/pairs, data/theirs, got 2 again"):
        run(knobs(mix={folder: {"default": {}}}), tmp_path)
    with pytest.raises(ValidationError, match="want folders besides data/pairs"):
        knobs(mix={dataset.IN: {"default": {}}})


def test_no_picture_is_read(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    read = pq.ParquetFile.read

    def noted(file: pq.ParquetFile, columns: list[str] | None = None, **kwargs: Any) -> pa.Table:
        asked.append(columns or file.schema_arrow.names)
        return read(file, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read", noted)
    run(knobs(), tmp_path)
    assert asked
    assert not {"source", "target", "mask"} & {name for columns in asked for name in columns}


def test_people_get_sheets_and_a_card(tmp_path: Path, pairs: list[Pair]) -> None:
    summary = run(knobs(licences={"base_model": "MIT"}), tmp_path)
    out = tmp_path / dataset.OUT
    extra = {"card.md", "sheet_depth.png", "sheet_local.png"}
    assert extra | {"shard-00000.parquet", "shard-00001.parquet", "shard-00002.parquet"} == set(summary.shards)
    written = (out / "card.md").read_text()
    assert "- local: `dino` >= 0.5, `dino` <= 0.9, `l1` <= 0.1" in written.splitlines()
    assert "Revision of the base_model: `m`." in written
    assert len(list(read_folder(out, Verdict, verify=True))) == 4  # the extra files are nobody's shards


def test_a_moved_threshold_moves_the_verdicts_only(tmp_path: Path, pairs: list[Pair]) -> None:
    run(knobs(), tmp_path)
    first = (tmp_path / dataset.OUT / "shard-00000.parquet").read_bytes()
    loose = knobs(gates=GATES | {"local": {"dino": {"min": 0.1}}})
    assert run(loose, tmp_path).counts["local.not_best"] == 1  # the better direction now wins
    assert [one.kept for one in read_folder(tmp_path / dataset.OUT, Verdict)] == [False, True, True, False]
    run(knobs(), tmp_path)
    assert (tmp_path / dataset.OUT / "shard-00000.parquet").read_bytes() == first


def test_a_stopped_run_goes_on(tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def stopping(path: Path, *rest: Any) -> None:
        if path.name in ("shard-00001.parquet",) and path.name not in written:
            written.append(path.name)
            raise KeyboardInterrupt
        written.append(path.name)
        write_shard(path, *rest)

    monkeypatch.setattr(dataset, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(knobs(), tmp_path)
    assert not (tmp_path / dataset.OUT).exists()
    run(knobs(), tmp_path)
    assert written == [f"shard-0000{n}.parquet" for n in (0, 1, 1, 2)]
    assert json.loads((tmp_path / dataset.OUT / "summary.json").read_text())["counts"]["kept"] == 2


def test_nothing_kept_is_an_error_that_counts(tmp_path: Path, pairs: list[Pair]) -> None:
    with pytest.raises(DatasetError, match=r"'dino_missing': 2.*loosen dataset.gates"):
        run(knobs(gates={"default": {"dino": {"min": 0.99}}}), tmp_path)


def test_the_default_gates_are_whole() -> None:
    params = load(Params, "dataset", ROOT / "params.yaml")
    assert params.row("depth") == {}
    assert params.row("remove")["left_inside"].keys() == {"max"}
