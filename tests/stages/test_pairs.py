import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import maximum_filter

from emuedit.config import World, load
from emuedit.data.png import decode_png
from emuedit.data.publish import publish, read_folder, read_summary, scratch_folder
from emuedit.data.records import Drop, Instruction, Pair
from emuedit.data.shards import read_shard, write_shard
from emuedit.runtime import Runtime
from emuedit.stages import MEMORY_ENV, dataset, pairs
from emuedit.stages.pairs import PairsError, PairsParams, group_by_source, run
from emuedit.synthesis.candidate import source_caption
from emuedit.synthesis.model_set import ModelSet
from emuedit.synthesis.recipes import recipes_for
from emuedit.synthesis.shard_maker import make_shard
from emuedit.synthesis.strategy import BanditStrategy, TrialCounts
from emuedit.synthesis.worker_pool import LocalWorkers, RayWorkers
from tests.stages.workspace import ROOT, Workspace, check_resume, load_params, read_files

STAR, BARE = "a big red star on the left on grass", "an empty scene on grass"
BLUE, SNOW = "a big blue star on the left on grass", "a big red star on the left on snow"
RING = "a big red star on the left and a small blue ring on the right on grass"
SMALL: dict[str, Any] = {
    "steps": 3, "device": "cpu", "dtype": "float32", "rows_per_batch": 6, "instructions_per_shard": 1,
    "detector_threshold": 0.0, "max_area": 0.9,  # three steps generate no star
}  # fmt: skip
IN_THIS_PROCESS = {"kind": "local", "processes": 1}


def make_instruction(
    task: str, source: str, target: str, objects: tuple[str | None, str | None], reverse: bool = False
) -> Instruction:
    return Instruction("c0", task, f"{task}!", source, target, *objects, reverse, 0, "test", "")


INSTRUCTIONS = [
    make_instruction("local", STAR, BLUE, ("red star", "blue star")),
    make_instruction("remove", STAR, BARE, ("red star", None)),
    make_instruction("background", STAR, SNOW, ("red star", "snow")),
    make_instruction("global", STAR, STAR + " at night", (None, "night")),
    make_instruction("detect", STAR, STAR + " with a box around the star", ("red star", "red star")),
    make_instruction("color", STAR, STAR, (None, "darken")),
    make_instruction("color", STAR, STAR, (None, "sing")),
    make_instruction("text", STAR, STAR, (None, "card with the letter A")),
    make_instruction("add", STAR, RING, (None, "blue ring"), reverse=True),
]
RECOLOURINGS = [  # each with a source of its own, so a shard of its own
    make_instruction("local", f"a big red star on {ground}", f"a big blue star on {ground}", ("red star", "blue star"))
    for ground in ("grass", "sand", "snow", "water", "brick")
]


def make_params(**changes: Any) -> PairsParams:
    return load_params(PairsParams, "pairs", **SMALL | {"workers": IN_THIS_PROCESS} | changes)


def publish_instructions(root: Path, instructions: list[Instruction]) -> Path:
    scratch = scratch_folder(root, "instructions", "test")
    write_shard(scratch / "shard-00000.parquet", instructions, Instruction)
    publish(scratch, root / pairs.IN, "instructions", {}, {})
    return root


@pytest.fixture(scope="module", autouse=True)
def models() -> Iterator[ModelSet]:
    """The models of all runs in this process, which are loaded once."""
    models = ModelSet(make_params().world, ROOT, Runtime("cpu", "float32"))

    def share(world: World, root: Path, runtime: Runtime) -> ModelSet:
        assert (world, runtime) == (models.world, models.runtime)
        return models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "ModelSet", share)
        yield models


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the pairs of INSTRUCTIONS."""
    root = publish_instructions(tmp_path_factory.mktemp("pairs"), INSTRUCTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "prepare_workers", lambda *_: pytest.fail("one process needs no server of processes"))
        run(make_params(), root)
    return root


def read_pairs(root: Path, task: str) -> list[Pair]:
    return [pair for pair in read_folder(root / pairs.OUT, Pair, verify=True) if pair.task == task]


@pytest.mark.slow
def test_every_candidate_of_every_instruction_is_published(published: Path) -> None:
    recipes = make_params().recipes
    for instruction in INSTRUCTIONS[:6]:
        candidates = read_pairs(published, instruction.task)
        numbers = list(range(len(recipes_for(recipes, instruction.task)) or 1))
        assert [pair.recipe["candidate"] for pair in candidates] == numbers
        for pair in candidates:
            assert pair.parent_ids == (instruction.id, "c0")
            assert (pair.source_caption, pair.target_caption) == (instruction.source_caption, instruction.target_caption)
            assert (pair.mask is None) == (instruction.task in ("global", "detect", "color"))
            assert pair.recipe["kind"] == ("annotate" if instruction.task in ("detect", "color") else "soft_mask")
    dropped = {drop.subject: drop.reason for drop in read_folder(published / pairs.OUT, Drop, "dropped-*.parquet")}
    assert dropped == {INSTRUCTIONS[6].id: "annotator_refused", INSTRUCTIONS[7].id: "no_object"}


def test_instructions_with_the_same_source_caption_share_their_source(published: Path) -> None:
    tasks = ("local", "remove", "background", "global", "detect", "color")
    sources = {pair.source for task in tasks for pair in read_pairs(published, task)}
    assert len(sources) == 1
    (source,) = sources
    added = read_pairs(published, "add")[0]
    assert added.source != source
    assert added.target != source, "its target is generated from the caption with the ring"


@pytest.mark.slow
def test_add_is_remove_with_source_and_target_exchanged(models: ModelSet) -> None:
    add = next(instruction for instruction in INSTRUCTIONS if instruction.task == "add")
    remove = make_instruction("remove", RING, STAR, ("blue ring", None))
    params = make_params()
    params = params.model_copy(update={"recipes": params.recipes | {"remove": recipes_for(params.recipes, "add")}})
    (removed,), _ = make_shard([remove], models, params, Counter())
    (added,), _ = make_shard([add], models, params, Counter())
    assert (added.source, added.target) == (removed.target, removed.source)
    assert added.mask == removed.mask
    assert added.scores["l1_outside"] == pytest.approx(removed.scores["l1_outside"])
    assert added.scores["source_object_after"] is None
    assert added.scores["target_object_after"] is not None


def test_every_pair_has_the_scores_that_are_defined_for_its_task(published: Path) -> None:
    local, global_, color = (read_pairs(published, task)[0].scores for task in ("local", "global", "color"))
    assert set(local) == {
        "clip_source", "clip_target", "clip_direction", "clip_image", "dino", "depth_l1", "l1_inside", "l1_outside",
        "mask_area", "source_object_after", "target_object_after", "source_object_before", "object_left_in_mask", "shift_px",
    }  # fmt: skip
    assert {name for name, score in local.items() if score is None} == {"object_left_in_mask"}  # an object is there afterwards
    shift_px = local["shift_px"]
    assert shift_px is not None
    assert shift_px < 0.2
    assert global_["mask_area"] is global_["shift_px"] is global_["target_object_after"] is None
    assert color["clip_direction"] is None
    assert read_pairs(published, "background")[0].scores["target_object_after"] is None


def test_the_edit_stays_in_its_mask(published: Path) -> None:
    pair = read_pairs(published, "remove")[0]
    assert pair.mask is not None
    difference = np.abs(decode_png(pair.source).astype(int) - decode_png(pair.target)).mean(-1)
    near = maximum_filter(decode_png(pair.mask), 33) > 0  # blended to the end; the decoder sees a few px around
    assert difference[~near].max(initial=0) <= 1  # the decoder rounds differently in another batch
    assert difference[near].max() > 10


@pytest.mark.slow
def test_an_interrupted_run_resumes_after_the_last_shard_with_the_same_bytes(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = publish_instructions(tmp_path, INSTRUCTIONS[::-1]), make_params()
    calls: list[int] = []

    def interrupted_make_shard(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make_shard(*arguments)

    monkeypatch.setattr(pairs, "make_shard", interrupted_make_shard)
    with pytest.raises(KeyboardInterrupt):
        run(params, root)
    assert not (root / pairs.OUT).exists()
    summary = run(params, root)
    assert len(calls) == 3, "there are two shards; the first must not be made again"
    names = sorted(path.name for path in (published / pairs.OUT).iterdir() if path.suffix == ".parquet")
    assert names == sorted(summary.shards)
    for name in names:
        assert (root / pairs.OUT / name).read_bytes() == (published / pairs.OUT / name).read_bytes()
    assert read_shard(root / pairs.OUT / "shard-00000.parquet", Pair, verify=True)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_terminated_run_with_two_workers_resumes_and_gives_the_bytes_of_one_worker(
    make_workspace: Callable[..., Workspace],
) -> None:
    two_workers = {"steps": 2, "workers": {"kind": "local", "processes": 2}}
    stopped, uninterrupted = (make_workspace(name, pairs=SMALL | two_workers) for name in ("stopped", "uninterrupted"))
    for workspace in (stopped, uninterrupted):
        publish_instructions(workspace.folder, RECOLOURINGS[:3])
    one_worker = LocalWorkers(processes=1)
    check_resume(stopped, uninterrupted, "pairs", pairs.OUT, signal.SIGTERM, min_children=2, workers=one_worker)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_bandit_learns_between_rounds_and_an_interruption_does_not_change_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filters = {"default": {"clip_direction": {"min": 0.0}}}
    strategy = {"kind": "bandit", "per_instruction": 1, "shards_per_round": 2, "sizes": [0.05], "filters": filters}
    params = make_params(strategy=BanditStrategy.model_validate_json(json.dumps(strategy)).model_dump())
    trial_counts: list[TrialCounts] = []

    def interrupted_make_shard(*arguments: Any) -> Any:
        trial_counts.append(arguments[3])
        if len(trial_counts) == 4:
            raise KeyboardInterrupt
        return make_shard(*arguments)

    monkeypatch.setattr(pairs, "make_shard", interrupted_make_shard)
    with pytest.raises(KeyboardInterrupt):
        run(params, publish_instructions(tmp_path / "stopped", RECOLOURINGS))
    run(params, tmp_path / "stopped")
    assert [counts.total() for counts in trial_counts] == [0, 0, 2, 2, 2, 4], "the fourth shard is begun twice"
    run(params, publish_instructions(tmp_path / "uninterrupted", RECOLOURINGS))
    assert trial_counts[6:] == [*trial_counts[:3], *trial_counts[4:6]]
    files = read_files(tmp_path / "uninterrupted" / pairs.OUT)
    shards = [f"{kind}-0000{number}.parquet" for kind in ("dropped", "shard") for number in range(5)]
    assert list(files) == ["bandit.json", *shards, "summary.json"]
    assert read_files(tmp_path / "stopped" / pairs.OUT) == files
    in_order = [instruction.id for instruction in sorted(RECOLOURINGS, key=source_caption)]
    assert [pair.instruction_id for pair in read_pairs(tmp_path / "uninterrupted", "local")] == in_order
    arms = json.loads(files["bandit.json"])["arms"]
    assert sum(arm["succeeded"] + arm["failed"] for arm in arms) == 5


def test_a_bandit_may_use_the_filters_of_the_dataset_by_a_yaml_alias(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("  filters:\n", "  filters: &filters\n")
    sections = {name: re.findall(rf"^{name}:\n(?:[ #].*\n|\n)*", text, re.MULTILINE)[0] for name in ("world", "dataset", "pairs")}
    bandit = "{kind: bandit, per_instruction: 1, shards_per_round: 4, sizes: [0.04, 0.1], filters: *filters}"
    (tmp_path / "params.yaml").write_text("".join(sections.values()) + f"  strategy: {bandit}\n")
    strategy = load(PairsParams, "pairs", tmp_path / "params.yaml").strategy
    assert isinstance(strategy, BanditStrategy)
    filters = load(dataset.DatasetParams, "dataset", ROOT / "params.yaml").filters
    assert strategy.filters == filters
    assert len(filters) > 5


def test_workers_device_and_filters_are_no_part_of_what_a_run_records(published: Path) -> None:
    params = make_params(workers=RayWorkers(kind="ray", actors=8, cpus=2).model_dump())
    recorded = read_summary(published / pairs.OUT).params
    assert recorded == params.model_dump(mode="json", exclude={"workers", "device"})
    assert "filters" not in json.dumps(recorded)


def test_shards_keep_instructions_with_one_source_together_in_any_order() -> None:
    instructions = [make_instruction("color", f"caption {n % 5}", "x", (None, f"word {n}")) for n in range(23)]
    shards = group_by_source(instructions, 6)
    assert group_by_source(instructions[::-1], 6) == shards
    ids = sorted(instruction.id for shard in shards for instruction in shard)
    assert ids == sorted(instruction.id for instruction in instructions)
    sources = [{source_caption(instruction) for instruction in shard} for shard in shards]
    assert sum(map(len, sources)) == 5
    assert [len(shard) for shard in shards] == [10, 9, 4]


def test_after_running_out_of_memory_all_but_a_candidate_and_its_source_are_computed_one_by_one(
    models: ModelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    n_images: Counter[str] = Counter()

    def record_most(name: str, function: Callable[..., Any], batch: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            n_images[name] = max(n_images[name], len(arguments[batch]))
            return function(*arguments)

        return call

    monkeypatch.setattr(type(models.base_model), "decode", record_most("decode", type(models.base_model).decode, 1))
    monkeypatch.setitem(models.__dict__, "annotate", record_most("annotate", models.annotate, 1))
    monkeypatch.setenv(MEMORY_ENV, "1")
    instructions = [INSTRUCTIONS[0], *INSTRUCTIONS[5:7], make_instruction("color", STAR, STAR, (None, "grayscale"))]
    params = make_params(rows_per_batch=2)
    summary = run(params, publish_instructions(tmp_path, instructions))
    assert n_images == {"decode": 1, "annotate": 1}
    assert summary.counts["pairs_local"] == len(recipes_for(params.recipes, "local"))
    assert summary.params["rows_per_batch"] == 2
    assert "pairs: ran out of memory with 2 images per batch; retrying with 1; a candidate is" in capsys.readouterr().out


def test_what_cannot_be_halved_again_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(MEMORY_ENV, "2")
    assert pairs._with_smaller_batches(make_params(rows_per_batch=2)).rows_per_batch == 1
    assert "with one image per batch, which cannot be halved; retrying unchanged; set pairs.workers" in capsys.readouterr().out


def test_no_instructions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"want instructions in .* got none"):
        run(make_params(), publish_instructions(tmp_path, []))
