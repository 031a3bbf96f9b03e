import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emuedit.config import load
from emuedit.data.png import decode_png
from emuedit.data.publish import publish, read_folder, read_summary, scratch_folder
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.data.shards import read_shard, write_shard
from emuedit.stages import dataset, pairs
from emuedit.stages.pairs import PairsError, Params, first_caption, run, shards
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.strategy import BanditStrategy, TrialCounts
from emuedit.synthesis.worker_pool import Ray

ROOT = Path(__file__).parents[2]
STAR, BARE = "a big red star on the left on grass", "an empty scene on grass"
BLUE, SNOW = "a big blue star on the left on grass", "a big red star on the left on snow"
RING = "a big red star on the left and a small blue ring on the right on grass"


def instruction(
    task: str, source: str, target: str, objects: tuple[str | None, str | None], reverse: bool = False
) -> Instruction:
    return Instruction("c0", task, f"{task}!", source, target, *objects, reverse, 0, "test", "")


WORK = [
    instruction("local", STAR, BLUE, ("red star", "blue star")),
    instruction("remove", STAR, BARE, ("red star", None)),
    instruction("background", STAR, SNOW, ("red star", "snow")),
    instruction("global", STAR, STAR + " at night", (None, "night")),
    instruction("detect", STAR, STAR + " with a box around the star", ("red star", "red star")),
    instruction("color", STAR, STAR, (None, "darken")),
    instruction("color", STAR, STAR, (None, "sing")),
    instruction("text", STAR, STAR, (None, "card with the letter A")),
    instruction("add", STAR, RING, (None, "blue ring"), reverse=True),
]


def settings(**changes: Any) -> Params:
    quick = {"steps": 3, "device": "cpu", "dtype": "float32", "rows_per_batch": 6, "instructions_per_shard": 1}
    loose = {"detector_threshold": 0.0, "max_area": 0.9}  # three steps paint no star
    return load(Params, "pairs", ROOT / "params.yaml").model_copy(update=quick | loose | changes)


def given(root: Path, work: list[Instruction]) -> Path:
    """A root with instructions, and the project's models by absolute name."""
    scratch = scratch_folder(root, "instructions", "test")
    write_shard(scratch / "shard-00000.parquet", work, Instruction)
    publish(scratch, root / pairs.IN, "instructions", {}, {})
    (root / "emuedit").symlink_to(ROOT / "emuedit")
    return root


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = given(tmp_path_factory.mktemp("pairs"), WORK)
    run(settings(), root)
    return root


def made(root: Path, task: str) -> list[Pair]:
    return [one for one in read_folder(root / pairs.OUT, Pair, verify=True) if one.task == task]


def test_every_candidate_of_every_instruction_is_there(done: Path) -> None:
    recipes = settings().recipes
    for one in WORK[:6]:
        got = made(done, one.task)
        assert [pair.recipe["candidate"] for pair in got] == list(range(len(recipes.of(one.task)) or 1))
        for pair in got:
            assert pair.parent_ids == (one.id, "c0")
            assert (pair.source_caption, pair.target_caption) == (one.source_caption, one.target_caption)
            assert (pair.mask is None) == (one.task in ("global", "detect", "color"))
            assert pair.recipe["kind"] == ("annotate" if one.task in ("detect", "color") else "control")
    dropped = {drop.subject: drop.reason for drop in read_folder(done / pairs.OUT, Drop, "dropped-*.parquet")}
    assert dropped == {WORK[6].id: "annotator_refused", WORK[7].id: "no_object"}


def test_one_first_picture_for_all_that_start_alike(done: Path) -> None:
    firsts = {pair.source for task in ("local", "remove", "background", "global", "detect", "color") for pair in made(done, task)}
    assert len(firsts) == 1
    (first,) = firsts
    added = made(done, "add")[0]
    assert added.source != first
    assert added.target != first  # painted from the caption with the ring


def test_add_is_remove_turned_round(done: Path) -> None:
    work = next(one for one in WORK if one.task == "add")
    forward = instruction("remove", RING, STAR, ("blue ring", None))
    params = settings()
    params = params.model_copy(update={"recipes": params.recipes.model_copy(update={"remove": params.recipes.of("add")})})
    models = ModelSet(params.world, ROOT, pairs.Runtime("cpu", "float32"), params.steps)
    (there,), _ = pairs.make_shard([forward], models, params, Counter())
    (back,), _ = pairs.make_shard([work], models, params, Counter())
    assert (back.source, back.target) == (there.target, there.source)
    assert back.mask == there.mask
    assert back.scores["l1_outside"] == pytest.approx(there.scores["l1_outside"])
    assert back.scores["present_source"] is None
    assert back.scores["present_target"] is not None


def test_scores_are_those_of_the_contract(done: Path) -> None:
    local, global_, color = (made(done, task)[0].scores for task in ("local", "global", "color"))
    assert set(local) == {
        "clip_source", "clip_target", "clip_direction", "clip_image", "dino", "depth_l1", "l1_inside", "l1_outside",
        "mask_area", "present_source", "present_target", "found_source", "left_inside", "shift_px",
    }  # fmt: skip
    assert {name for name, score in local.items() if score is None} == {"left_inside"}  # something stands there afterwards
    assert local["shift_px"] < 0.2
    assert global_["mask_area"] is global_["shift_px"] is global_["present_target"] is None
    assert color["clip_direction"] is None
    assert made(done, "background")[0].scores["present_target"] is None


def test_the_edit_stays_in_its_mask(done: Path) -> None:
    pair = made(done, "remove")[0]
    assert pair.mask is not None
    moved = np.abs(decode_png(pair.source).astype(int) - decode_png(pair.target)).mean(-1)
    from scipy.ndimage import maximum_filter

    near = maximum_filter(decode_png(pair.mask), 33) > 0  # blended to the end; the decoder looks a few px around
    assert moved[~near].max(initial=0) <= 1  # the decoder rounds differently in another batch
    assert moved[near].max() > 10


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, params = given(tmp_path, WORK[::-1]), settings()
    heart, calls = pairs.make_shard, []

    def stop_at_second(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return heart(*args)

    monkeypatch.setattr(pairs, "make_shard", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        run(params, root)
    assert not (root / pairs.OUT).exists()
    summary = run(params, root)
    assert len(calls) == 3  # two shards; the first was not made again
    names = sorted(path.name for path in (done / pairs.OUT).iterdir() if path.suffix == ".parquet")
    assert names == sorted(summary.shards)
    for name in names:
        assert (root / pairs.OUT / name).read_bytes() == (done / pairs.OUT / name).read_bytes()
    assert read_shard(root / pairs.OUT / "shard-00000.parquet", Pair, verify=True)


def test_a_bandit_learns_between_rounds_and_a_stopped_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grounds = ("grass", "sand", "snow", "water", "brick")
    work = [
        instruction("local", f"a big red star on {one}", f"a big blue star on {one}", ("red star", "blue star"))
        for one in grounds
    ]
    gates = {"default": {"clip_direction": {"min": 0.0}}}
    knob = {"kind": "bandit", "per_instruction": 1, "shards_per_round": 2, "sizes": [0.05], "gates": gates}
    params = settings(strategy=BanditStrategy.model_validate_json(json.dumps(knob)))
    heart, told = pairs.make_shard, list[TrialCounts]()

    def noted(*args: Any) -> Any:
        told.append(args[-1])
        if len(told) == 4:
            raise KeyboardInterrupt
        return heart(*args)

    monkeypatch.setattr(pairs, "make_shard", noted)
    with pytest.raises(KeyboardInterrupt):
        run(params, given(tmp_path / "stopped", work))
    run(params, tmp_path / "stopped")
    assert [one.total() for one in told] == [0, 0, 2, 2, 2, 4]  # the fourth shard was begun twice
    run(params, given(tmp_path / "whole", work))
    assert told[6:] == [*told[:3], *told[4:6]]
    names = sorted(path.name for path in (tmp_path / "whole" / pairs.OUT).iterdir())
    assert names == [
        "bandit.json",
        *(f"dropped-0000{n}.parquet" for n in range(5)),
        *(f"shard-0000{n}.parquet" for n in range(5)),
        "summary.json",
    ]
    for name in names:
        assert (tmp_path / "whole" / pairs.OUT / name).read_bytes() == (tmp_path / "stopped" / pairs.OUT / name).read_bytes()
    assert [one.instruction_id for one in made(tmp_path / "whole", "local")] == [
        one.id for one in sorted(work, key=first_caption)
    ]
    arms = json.loads((tmp_path / "whole" / pairs.OUT / "bandit.json").read_text())["arms"]
    assert sum(one["won"] + one["lost"] for one in arms) == 5


def test_a_bandit_is_given_the_gates_of_the_dataset_by_name(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    (offered,) = re.findall(r"\{kind: bandit, .*\}", text)
    (tmp_path / "params.yaml").write_text(text.replace("strategy: {kind: all}", f"strategy: {offered}"))
    strategy = load(Params, "pairs", tmp_path / "params.yaml").strategy
    assert isinstance(strategy, BanditStrategy)
    assert strategy.gates == load(dataset.DatasetParams, "dataset", ROOT / "params.yaml").gates


def test_who_makes_shards_and_what_gates_ask_changes_nothing(done: Path) -> None:
    params = settings(workers=Ray(kind="ray", actors=8, cpus=2))
    assert read_summary(done / pairs.OUT).params == params.model_dump(mode="json", by_alias=True, exclude={"workers"})
    assert "gates" not in json.dumps(read_summary(done / pairs.OUT).params)


def test_shards_keep_groups_together_in_any_order() -> None:
    many = [instruction("color", f"caption {n % 5}", "x", (None, f"word {n}")) for n in range(23)]
    got = shards(many, 6)
    assert shards(many[::-1], 6) == got
    assert sorted(one.id for part in got for one in part) == sorted(one.id for one in many)
    where = [{first_caption(one) for one in part} for part in got]
    assert sum(map(len, where)) == 5
    assert [len(part) for part in got] == [10, 9, 4]


def test_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"want instructions in .* got none"):
        run(settings(), given(tmp_path, []))
